//! Weights in other layouts, types and places compute the same.

use crate::fixture::*;
use convert::ExpertLayout::{Split, Stacked};
use quants::TensorType;
use regex::Regex;
use runtime::residency::{GpuLayers, PlacementOptions, Repack};
use runtime::{Kernels, Model, ModelOptions, Session};

fn answer_of(path: &std::path::Path, options: &ModelOptions) -> Vec<Vec<f32>> {
    let model = load(path, options);
    answers(&model, &mut session(&model))
}

#[test]
fn split_experts_compute_what_stacked_ones_do() {
    let (stacked, split) = (tiny_moe("q4_k", Stacked), tiny_moe("q4_k", Split));
    let one = answer_of(&stacked.path, &plain());
    let other = answer_of(&split.path, &plain());
    assert_eq!(difference(&one, &other), 0.0);
}

#[test]
fn split_experts_are_read_where_the_file_is_mapped() {
    let split = tiny_moe("q8_0", Split);
    let model = load(&split.path, &plain());
    assert_eq!(model.sizes(), [("CPU".to_owned(), model.size_bytes())]);
}

#[test]
fn experts_of_different_types_are_computed_in_groups() {
    let split = tiny_moe("f32", Split);
    let expected = answer_of(&split.path, &plain());
    // Two experts of some projections in another type: first and last, so that both groups have gaps.
    let mixed = rewrite(
        &split.path,
        |_| {},
        |name| {
            let other = name.ends_with("ffn_up.0.weight")
                || name.ends_with("ffn_down.3.weight")
                || name == "blk.1.ffn_gate.2.weight";
            if other { Edit::Retype(TensorType::F16) } else { Edit::Keep }
        },
    );
    let found = answer_of(&mixed.path, &plain());
    let worst = difference(&expected, &found);
    assert!(worst < 0.05, "F16 experts among F32 ones moved a logit by {worst}");
    assert!(worst > 0.0, "the rounding of F16 must show");
}

#[test]
fn copied_and_repacked_weights_compute_the_same_but_for_rounding() {
    let stacked = tiny_moe("q4_k", Stacked);
    let mapped = answer_of(&stacked.path, &plain());
    let copied = answer_of(&stacked.path, &ModelOptions { use_mmap: false, ..plain() });
    assert_eq!(difference(&mapped, &copied), 0.0);
    let mut options = plain();
    options.placement.repack = Repack::On;
    let repacked = answer_of(&stacked.path, &options);
    let worst = difference(&mapped, &repacked);
    assert!(worst < 0.5, "repacked weights moved a logit by {worst}");
}

/// Every way of spreading the model over two devices and the host gives the host's own answer.
#[test]
fn a_device_changes_nothing_but_the_place() {
    let devices = ggml::stand_in::register(2, 64 << 20).expect("registered");
    let names: Vec<String> = devices.iter().map(|device| device.name()).collect();
    let stacked = tiny_moe("q4_k", Stacked);
    let split = tiny_moe("q4_k", Split);
    let on = |placement: PlacementOptions| ModelOptions {
        placement: PlacementOptions {
            repack: Repack::Off,
            devices: placement.devices.or_else(|| Some(names.clone())),
            ..placement
        },
        // The stand-in computes with ggml's kernels, as the host must then too.
        kernels: Some(Kernels::Ggml),
        ..ModelOptions::default()
    };
    let host = on(PlacementOptions { devices: Some(Vec::new()), ..Default::default() });
    let expected = answer_of(&stacked.path, &host);

    let to = |regex: &str, buffer: &str| vec![(Regex::new(regex).expect("a regex"), buffer.to_owned())];
    let placements = [
        ("all layers", PlacementOptions { n_gpu_layers: GpuLayers::All, ..Default::default() }),
        ("two layers", PlacementOptions { n_gpu_layers: GpuLayers::Count(2), ..Default::default() }),
        ("as many as fit", PlacementOptions::default()),
        (
            "experts on the host",
            PlacementOptions { n_gpu_layers: GpuLayers::All, cpu_moe: true, ..Default::default() },
        ),
        (
            "one layer's experts on the host",
            PlacementOptions { n_gpu_layers: GpuLayers::All, n_cpu_moe: 1, ..Default::default() },
        ),
        (
            "some tensors by name",
            PlacementOptions {
                n_gpu_layers: GpuLayers::Count(0),
                overrides: to(r"blk\.1\.ffn_(up|down)", &names[1]),
                ..Default::default()
            },
        ),
    ];
    for (what, placement) in placements {
        for (layout, file) in [("stacked", &stacked), ("split", &split)] {
            let model = load(&file.path, &on(placement.clone()));
            let mut session = session(&model);
            let found = answers(&model, &mut session);
            assert_eq!(difference(&expected, &found), 0.0, "{what}, {layout} experts");
            assert!(
                session.n_splits() > 1 || what == "as many as fit",
                "{what}, {layout} experts: nothing ran on the device"
            );
        }
    }
    // Experts of one layer in two places at once.
    let apart = on(PlacementOptions {
        n_gpu_layers: GpuLayers::Count(0),
        overrides: to(r"ffn_(gate|up|down)\.[13]\.", &names[0]),
        ..Default::default()
    });
    let found = answer_of(&split.path, &apart);
    let worst = difference(&expected, &found);
    assert!(worst < 1e-3, "experts in two places moved a logit by {worst}");
}

/// Our own kernels compute what lies on the host, wherever the rest lies.
#[test]
fn host_kernels_work_beside_devices() {
    let devices = ggml::stand_in::register(2, 64 << 20).expect("registered");
    let names: Vec<String> = devices.iter().map(|device| device.name()).collect();
    let first = names[0].clone();
    let file = tiny_moe("f32", Split);
    let on = |placement: PlacementOptions| {
        let devices = placement.devices.or_else(|| Some(names.clone()));
        let placement = PlacementOptions { repack: Repack::Off, devices, ..placement };
        answer_of(
            &file.path,
            &ModelOptions { placement, kernels: Some(Kernels::Bruce), ..Default::default() },
        )
    };
    let expected = on(PlacementOptions { devices: Some(Vec::new()), ..Default::default() });
    let apart = vec![(Regex::new(r"blk\.1\.ffn_up\.[13]\.").expect("a regex"), first)];
    let placements = [
        PlacementOptions { n_gpu_layers: GpuLayers::All, ..Default::default() },
        PlacementOptions { n_gpu_layers: GpuLayers::Count(2), ..Default::default() },
        PlacementOptions { n_gpu_layers: GpuLayers::All, cpu_moe: true, ..Default::default() },
        PlacementOptions { n_gpu_layers: GpuLayers::Count(0), overrides: apart, ..Default::default() },
    ];
    for placement in placements {
        let worst = difference(&expected, &on(placement.clone()));
        // Attention on a device is ggml's, which rounds queries to F16.
        assert!(worst < 1e-2, "{placement:?}: a logit differs by {worst}");
    }
}

#[test]
fn the_number_of_experts_can_be_overridden() {
    let file = tiny_moe("q8_0", Stacked);
    let two = answer_of(&file.path, &plain());
    let four = answer_of(&file.path, &ModelOptions { n_expert_used: Some(4), ..plain() });
    assert!(difference(&two[..1], &four[..1]) > 1e-3);
    let same = answer_of(&file.path, &ModelOptions { n_expert_used: Some(2), ..plain() });
    assert_eq!(difference(&two, &same), 0.0);
    for n in [0, 5] {
        let options = ModelOptions { n_expert_used: Some(n), ..plain() };
        let Err(error) = Model::load(&file.path, &options, &mut ()) else { panic!("{n} of 4 experts") };
        assert_eq!(
            error.to_string(),
            format!("--experts: found {n}, expected 1 to 4, the number of experts")
        );
    }
}

#[test]
fn a_model_outlives_its_session_and_its_file() {
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &plain());
    let expected = answers(&model, &mut session(&model));
    drop(file); // the name goes; the mapping stays
    let mut session = Session::new(&model, &session_options()).expect("a session");
    drop(model.clone());
    assert_eq!(difference(&expected, &answers(&model, &mut session)), 0.0);
}

#[test]
fn the_demand_of_a_file_is_all_of_its_bytes_in_both_layouts() {
    use runtime::residency::budget::Demand;
    let demand = |layout| {
        let file = tiny_moe("q8_0", layout);
        let model = load(&file.path, &plain());
        let tensors = model.gguf().tensors();
        let demand = Demand::new(model.hparams(), tensors, 2, |layer, _| (layer == 1).then_some(0.75));
        let dense: u64 = demand.dense_bytes.iter().sum();
        assert_eq!(dense + demand.table_bytes + demand.expert_bytes(), model.size_bytes());
        assert_eq!(demand.n_layer(), 3);
        demand
    };
    let stacked = demand(Stacked);
    assert_eq!(stacked, demand(Split));
    assert_eq!(stacked.experts.len(), 12);
    let chances: Vec<f64> = stacked.experts.iter().map(|item| item.chance).collect();
    assert_eq!(chances[4..8], [0.75; 4]);
    for layer in [&chances[..4], &chances[8..]] {
        assert!(
            (layer.iter().sum::<f64>() - 2.0).abs() < 1e-9 && layer.is_sorted_by(|a, b| a > b),
            "{layer:?}"
        );
    }
}
