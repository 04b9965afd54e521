//! What GGUF files say about themselves and the model in them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, anyhow, bail};
use convert::provenance;
use gguf::{Gguf, Metadata};
use model_spec::{FileType, HyperParams, keys};

/// A model that this one was made from.
pub struct BaseModel {
    /// Its name, with the organisation.
    pub name: String,
    /// Where it is on the hub: `mistralai/Mistral-7B-v0.1`.
    pub id: Option<String>,
}

/// One file, or the parts of one.
pub struct FileFacts {
    /// Name, size in bytes and SHA-256 of each part.
    pub parts: Vec<(String, u64, String)>,
    /// `Q4_K_M`.
    pub file_type: String,
    /// Over the tensors alone.
    pub bits_per_weight: f64,
    /// How it was made, where it says.
    pub command: Option<String>,
    /// The file of importances that was used: name, text, number of chunks and SHA-256.
    pub imatrix: Option<String>,
    /// SHA-256 of the table of types by expert that was used.
    pub expert_types: Option<String>,
}

impl FileFacts {
    /// Bytes of all parts.
    pub fn size(&self) -> u64 {
        self.parts.iter().map(|part| part.1).sum()
    }
}

/// The model that is in all files.
pub struct Model {
    pub name: String,
    pub description: Option<String>,
    pub license: Vec<String>,
    pub license_name: Option<String>,
    pub license_link: Option<String>,
    /// Where the model itself is on the hub.
    pub id: Option<String>,
    pub base_models: Vec<BaseModel>,
    pub tags: Vec<String>,
    pub languages: Vec<String>,
    pub quantized_by: Option<String>,
    /// What each expert was made from; empty where nobody knows.
    pub experts: Vec<String>,
    pub hparams: Option<HyperParams>,
    pub n_weights: u64,
    pub has_chat_template: bool,
    pub version: Option<String>,
    pub fingerprint: Option<String>,
    pub files: Vec<FileFacts>,
}

/// Reads the headers of all files and hashes them.
///
/// # Errors
/// A file can't be read, is named twice, or is of another model than the first.
pub fn read(paths: &[PathBuf], quiet: bool) -> Result<Model, anyhow::Error> {
    let mut opened: Vec<Gguf> = Vec::new();
    for path in paths {
        let file = Gguf::open(path)?;
        // A pattern of the shell names every part.
        if !opened.iter().any(|other| other.parts()[0] == file.parts()[0]) {
            opened.push(file);
        }
    }
    let first = opened.first().ok_or_else(|| anyhow!("found no file, expected one at least"))?;
    let mut model = model(first)?;
    for file in &opened {
        let name = text(file.metadata(), keys::GENERAL_NAME);
        if name.as_deref().unwrap_or_default() != model.name {
            let (path, name) = (file.path().display(), name.unwrap_or_default());
            bail!("{path}: general.name: found {name:?}, expected {:?} as in the first file", model.name);
        }
    }
    let all: Vec<&Path> = opened.iter().flat_map(|file| file.parts()).map(PathBuf::as_path).collect();
    let hashes = hashes(&all, quiet)?;
    let mut hashes = hashes.into_iter();
    for file in &opened {
        let n_weights: u64 = file.tensors().iter().map(|t| t.ne.iter().product::<u64>()).sum();
        let bytes: u64 = file.tensors().iter().map(|t| t.size).sum();
        let mut parts = Vec::new();
        for (part, hash) in file.parts().iter().zip(hashes.by_ref()) {
            let size = part.metadata().with_context(|| format!("{}: cannot read", part.display()))?.len();
            parts.push((file_name(part), size, hash));
        }
        model.n_weights = n_weights;
        model.files.push(FileFacts {
            parts,
            file_type: file_type(file),
            bits_per_weight: bytes as f64 * 8.0 / n_weights.max(1) as f64,
            command: text(file.metadata(), provenance::COMMAND),
            imatrix: imatrix(file.metadata()),
            expert_types: text(file.metadata(), provenance::EXPERT_TYPES),
        });
    }
    model.files.sort_by_key(FileFacts::size);
    Ok(model)
}

fn model(file: &Gguf) -> Result<Model, anyhow::Error> {
    let metadata = file.metadata();
    let get = |key: &str| text(metadata, key);
    let list = |key: &str| metadata.strings(key).ok().flatten().map(<[String]>::to_vec).unwrap_or_default();
    let mut base_models = Vec::new();
    for i in 0..metadata.u32(keys::GENERAL_BASE_MODEL_COUNT)?.unwrap_or(0).min(1024) {
        let field = |field: &str| get(&format!("general.base_model.{i}.{field}"));
        let name = field("name").unwrap_or_default();
        let name = match field("organization") {
            Some(organization) => format!("{organization}/{name}"),
            None => name,
        };
        let id = field("repo_url").and_then(|url| hub_id(&url));
        base_models.push(BaseModel { name, id });
    }
    let source = [keys::GENERAL_SOURCE_REPO_URL, keys::GENERAL_SOURCE_URL].into_iter().filter_map(get);
    Ok(Model {
        name: get(keys::GENERAL_NAME).unwrap_or_default(),
        description: get(keys::GENERAL_DESCRIPTION),
        license: get(keys::GENERAL_LICENSE)
            .map(|all| all.split(',').map(|one| one.trim().to_owned()).collect())
            .unwrap_or_default(),
        license_name: get(keys::GENERAL_LICENSE_NAME),
        license_link: get(keys::GENERAL_LICENSE_LINK),
        id: source.filter_map(|url| hub_id(&url)).next(),
        base_models,
        tags: list(keys::GENERAL_TAGS),
        languages: list(keys::GENERAL_LANGUAGES),
        quantized_by: get(keys::GENERAL_QUANTIZED_BY),
        experts: list(keys::MERGEKIT_EXPERTS),
        hparams: HyperParams::from_metadata(metadata).ok(),
        n_weights: 0,
        has_chat_template: metadata.contains(keys::CHAT_TEMPLATE),
        version: get(provenance::VERSION),
        fingerprint: get(provenance::SOURCE),
        files: Vec::new(),
    })
}

fn text(metadata: &Metadata, key: &str) -> Option<String> {
    metadata.str(key).ok().flatten().map(str::to_owned).filter(|text| !text.trim().is_empty())
}

/// The hub's name of what is at an address.
fn hub_id(url: &str) -> Option<String> {
    let rest = url.strip_prefix("https://huggingface.co/").or_else(|| url.strip_prefix("https://hf.co/"))?;
    let mut parts = rest.trim_end_matches('/').split('/');
    let (user, name) = (parts.next()?, parts.next()?);
    is_hub_id(&format!("{user}/{name}")).then(|| format!("{user}/{name}"))
}

/// Whether a text has the form `USER/NAME`.
pub fn is_hub_id(text: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    text.split_once('/').is_some_and(|(user, name)| plain(user) && plain(name))
}

/// What the file says, or the type that most of it has.
fn file_type(file: &Gguf) -> String {
    let stated = file.metadata().u32(keys::GENERAL_FILE_TYPE).ok().flatten().and_then(FileType::from_id);
    if let Some(file_type) = stated {
        return file_type.name().to_owned();
    }
    let mut sizes: Vec<(quants::TensorType, u64)> = Vec::new();
    for tensor in file.tensors() {
        match sizes.iter_mut().find(|row| row.0 == tensor.ty) {
            Some(row) => row.1 += tensor.size,
            None => sizes.push((tensor.ty, tensor.size)),
        }
    }
    sizes.into_iter().max_by_key(|row| row.1).map_or("unknown".to_owned(), |row| row.0.name().to_owned())
}

fn imatrix(metadata: &Metadata) -> Option<String> {
    let file = text(metadata, "quantize.imatrix.file")?;
    // llama-quantize records the path, which is its maker's business.
    let mut said = file.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
    if let Some(dataset) = text(metadata, "quantize.imatrix.dataset") {
        let dataset = dataset.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
        said.push_str(&format!(", calibrated on {dataset}"));
    }
    if let Some(n) = metadata.u32("quantize.imatrix.chunks_count").ok().flatten() {
        said.push_str(&format!(", {n} chunks"));
    }
    if let Some(hash) = text(metadata, provenance::IMATRIX) {
        said.push_str(&format!(", SHA-256 {hash}"));
    }
    Some(said)
}

pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// SHA-256 sums, in the order of the files.
fn hashes(files: &[&Path], quiet: bool) -> Result<Vec<String>, anyhow::Error> {
    let progress = crate::progress::draw(quiet);
    progress.begin(files.iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum());
    let next = AtomicUsize::new(0);
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from).min(files.len());
    let mut found: Vec<(usize, Result<String, anyhow::Error>)> = std::thread::scope(|scope| {
        let hash_files = || {
            let mut hashes = Vec::new();
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
                progress.tensor(&format!("SHA-256 of {}", file_name(file)));
                let at = files.iter().position(|f| *f == file).unwrap_or(0);
                let hash = provenance::sha256(file, &|n| progress.advance(n));
                hashes.push((at, hash.with_context(|| format!("{}: cannot read", file.display()))));
            }
            hashes
        };
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(hash_files)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, hash)| hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_on_the_hub_have_an_id() {
        assert_eq!(hub_id("https://huggingface.co/me/M-7B").as_deref(), Some("me/M-7B"));
        assert_eq!(hub_id("https://huggingface.co/me/M/tree/main").as_deref(), Some("me/M"));
        for other in
            ["https://example.org/me/M", "https://huggingface.co/me", "https://huggingface.co/me/a b"]
        {
            assert_eq!(hub_id(other), None, "{other}");
        }
    }
}
