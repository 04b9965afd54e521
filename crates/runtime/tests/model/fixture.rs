//! Model files for the tests, and what they compute.

use convert::{ExpertLayout, NoProgress, Plan};
use gguf::{Gguf, Layout, Metadata, Overwrite, TensorSpec, Writer};
use model_spec::FileType;
use quants::TensorType;
use runtime::residency::{GpuLayers, PlacementOptions, Repack};
use runtime::{Kernels, Logits, Model, ModelOptions, Session, SessionOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub const PROMPT: &str = "In the beginning God created the heaven and the earth";

/// A directory with the small trained model in one file type and layout.
pub struct Fixture {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
}

/// Converts `models/tiny-moe`.
pub fn tiny_moe(file_type: &str, layout: ExpertLayout) -> Fixture {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("model.gguf");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-moe");
    let checkpoint = checkpoint::Checkpoint::open(&source).expect("it ships with the project");
    let file_type = FileType::from_name(file_type).expect("a type");
    let options =
        convert::Options { file_types: vec![file_type], expert_layout: layout, ..Default::default() };
    let plan = Plan::new(&checkpoint, &options).expect("a plan");
    let execute = convert::ExecuteOptions { threads: 1, ..Default::default() };
    convert::execute(&checkpoint, &plan, std::slice::from_ref(&path), &execute, &NoProgress)
        .expect("converted");
    Fixture { _dir: dir, path }
}

/// What becomes of a tensor when a file is written anew.
pub enum Edit {
    Keep,
    Drop,
    /// The same values in another type.
    Retype(TensorType),
    /// The same bytes in another shape.
    Reshape(Vec<u64>),
}

/// Writes `path` anew with its metadata and tensors changed.
pub fn rewrite(path: &Path, edit_metadata: impl Fn(&mut Metadata), edit: impl Fn(&str) -> Edit) -> Fixture {
    let old = Gguf::open(path).expect("a file of ours");
    let mut metadata = old.metadata().clone();
    edit_metadata(&mut metadata);
    let mut specs = Vec::new();
    let mut contents = Vec::new();
    for tensor in old.tensors() {
        let mut spec = TensorSpec { name: tensor.name.clone(), ne: tensor.ne.to_vec(), ty: tensor.ty };
        let mut bytes = old.data(tensor).to_vec();
        match edit(&tensor.name) {
            Edit::Keep => {}
            Edit::Drop => continue,
            Edit::Reshape(ne) => spec.ne = ne,
            Edit::Retype(ty) => {
                let n = tensor.ne.iter().product::<u64>();
                let mut values = vec![0.0; n as usize];
                quants::dequantize(tensor.ty, &bytes, &mut values).expect("decodes");
                bytes = vec![0; ty.row_bytes(n).expect("whole blocks") as usize];
                quants::quantize(ty, &values, &mut bytes).expect("encodes");
                spec.ty = ty;
            }
        }
        specs.push(spec);
        contents.push(bytes);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("model.gguf");
    let layout = Layout::new(&metadata, &specs, 32).expect("a layout");
    let writer = Writer::create(&path, layout, Overwrite::Refuse).expect("a file");
    for (index, bytes) in contents.iter().enumerate() {
        writer.write_at(index, 0, bytes).expect("written");
    }
    writer.finish().expect("finished");
    Fixture { _dir: dir, path }
}

/// The small model in one tensor for each expert, of which some have another type.
pub fn mixed_types() -> Fixture {
    let split = tiny_moe("f32", ExpertLayout::Split);
    rewrite(
        &split.path,
        |_| {},
        |name| {
            let other = name.contains("ffn_up.1.")
                || name.contains("ffn_down.2.")
                || name == "blk.1.ffn_gate.3.weight";
            if other { Edit::Retype(TensorType::Q8_0) } else { Edit::Keep }
        },
    )
}

/// Reads weights where the file is mapped, which is the same arithmetic in every layout and place. No devices: those that
/// stand in for a GPU in one test are there for all tests of the process.
pub fn plain() -> ModelOptions {
    let mut options = ModelOptions::default();
    options.placement.devices = Some(Vec::new());
    options.placement.repack = Repack::Off;
    options
}

pub fn load(path: &Path, options: &ModelOptions) -> Arc<Model> {
    Model::load(path, options, &mut ()).expect("a model that runs")
}

/// Few threads: tests run beside each other.
pub fn session_options() -> SessionOptions {
    SessionOptions { n_ctx: 512, n_threads: 1, ..Default::default() }
}

pub fn session(model: &Arc<Model>) -> Session {
    Session::new(model, &session_options()).expect("a session")
}

pub fn prompt(model: &Model) -> Vec<u32> {
    use runtime::tokenizer::{AddBos, Special};
    model.tokenizer().encode(PROMPT, Special::Literal, AddBos::Auto)
}

/// Logits after the prompt and after each of four greedy tokens.
pub fn answers(model: &Arc<Model>, session: &mut Session) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    session.decode(&prompt(model), Logits::Last).expect("read");
    for _ in 0..4 {
        let logits = session.logits(0).to_vec();
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("a vocabulary");
        all.push(logits);
        session.decode(&[best as u32], Logits::Last).expect("read");
    }
    all
}

/// Largest difference between two answers; they must be of one shape and finite.
pub fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    let worst = pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(a.iter().flatten().all(|x| x.is_finite()));
    worst
}

/// A device of its own with so much memory.
pub fn stand_in(bytes: usize) -> ggml::Device {
    ggml::stand_in::register(1, bytes).expect("registered")[0]
}

/// Everything on the device but what `place` keeps on the host, with our kernels there.
pub fn on_device(device: ggml::Device, place: impl Fn(&mut PlacementOptions)) -> ModelOptions {
    let mut placement = PlacementOptions {
        devices: Some(vec![device.name()]),
        n_gpu_layers: GpuLayers::All,
        repack: Repack::Off,
        fixed_experts: true,
        ..Default::default()
    };
    place(&mut placement);
    ModelOptions { kernels: Some(Kernels::Bruce), placement, ..Default::default() }
}
