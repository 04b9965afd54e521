//! What devices get to see: operations in the orders that ggml's back ends make one kernel of, in few pieces, at addresses
//! that stay, so that what was recorded of one token can be replayed for the next.

use crate::fixture::*;
use convert::ExpertLayout::{Split, Stacked};
use ggml::Node;
use quants::TensorType;
use runtime::residency::{ExpertSlots, PlacementOptions};
use runtime::{Error, Kernels, Logits, Model, ModelOptions, Session, SessionOptions};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const N_LAYERS: usize = 3;

/// The choice of experts and their weights, as CUDA, Vulkan and Metal want it; the choice and the weights are results.
const CHOICE: (&[&str], &[usize]) = (
    &["SOFT_MAX", "RESHAPE", "ARGSORT", "VIEW", "GET_ROWS", "RESHAPE", "SUM_ROWS", "CLAMP", "DIV", "RESHAPE"],
    &[3, 9],
);
/// Keys on their way to their cells.
const KEYS: (&[&str], &[usize]) = (&["ROPE", "VIEW", "SET_ROWS"], &[2]);
/// Gate and up of the chosen experts.
const HIDDEN: (&[&str], &[usize]) = (&["MUL_MAT_ID", "MUL_MAT_ID", "GLU"], &[2]);
/// The weighted sum of two experts.
const SUM: (&[&str], &[usize]) = (&["MUL", "VIEW", "VIEW", "ADD"], &[3]);
const NORM: (&[&str], &[usize]) = (&["RMS_NORM", "MUL"], &[1]);
/// Attention's output and the residual.
const RESIDUAL: (&[&str], &[usize]) = (&["MUL_MAT", "ADD"], &[1]);

/// A model that lies on a device but for the token embeddings.
fn everything_on_a_device(file: &Fixture) -> Arc<Model> {
    let device = stand_in(64 << 20);
    load(&file.path, &on_device(device, |_| {}))
}

/// How often `ops` follow each other so that they can be one kernel: this is ggml's rule. Of what is no result, only the
/// others of the row may read, and no view may reach outside.
fn fusable(nodes: &[Node], (ops, results): (&[&str], &[usize])) -> usize {
    let n_uses =
        |row: &[Node], id: usize| row.iter().flat_map(|node| &node.sources).filter(|s| **s == id).count();
    let fits = |row: &&[Node]| {
        row.iter().zip(ops).enumerate().all(|(index, (node, op))| {
            let is_inside = |id: usize| row.iter().any(|other| other.id == id);
            node.op == *op
                && (results.contains(&index)
                    || (!node.is_output
                        && n_uses(row, node.id) == n_uses(nodes, node.id)
                        && node.view_of.is_none_or(is_inside)))
        })
    };
    nodes.windows(ops.len()).filter(fits).count()
}

#[test]
fn operations_come_in_the_orders_that_devices_fuse() {
    for layout in [Stacked, Split] {
        let model = everything_on_a_device(&tiny_moe("q8_0", layout));
        let mut session = session(&model);
        for (n_tokens, logits) in [(1, Logits::Last), (40, Logits::Last), (40, Logits::All)] {
            session.decode(&vec![5; n_tokens], logits).expect("read");
            let nodes = session.graph_nodes();
            let what = format!("{layout:?} experts, {n_tokens} tokens, {logits:?}");
            for (row, wanted) in [
                (CHOICE, N_LAYERS),
                (KEYS, N_LAYERS),
                (HIDDEN, N_LAYERS),
                (SUM, N_LAYERS),
                (NORM, 2 * N_LAYERS + 1),
                // Between the last layer's and its residual the wanted tokens are picked.
                (RESIDUAL, if n_tokens > 1 && logits == Logits::Last { N_LAYERS - 1 } else { N_LAYERS }),
            ] {
                assert_eq!(fusable(&nodes, row), wanted, "{:?}: {what}", row.0);
            }
            let copies: Vec<&Node> =
                nodes.iter().filter(|node| ["CONT", "CPY", "DUP"].contains(&node.op.as_str())).collect();
            assert!(copies.is_empty(), "{what}: {copies:?}");
            // The embeddings are looked up on the host, and all else is one piece.
            assert_eq!(session.n_splits(), 2, "{what}");
        }
    }
}

#[test]
fn experts_in_slots_come_in_these_orders_too() {
    let device = stand_in(64 << 20);
    let options = on_device(device, |placement| placement.expert_slots = Some(ExpertSlots::Uniform(2)));
    let model = load(&tiny_moe("q8_0", Stacked).path, &options);
    let mut session = session(&model);
    session.decode(&[5], Logits::Last).expect("read");
    let nodes = session.graph_nodes();
    // Weights of experts that have no slot are zero.
    let masked = (&["MUL", "MUL", "VIEW", "VIEW", "ADD"][..], &[4][..]);
    for row in [CHOICE, KEYS, HIDDEN, masked] {
        assert_eq!(fusable(&nodes, row), N_LAYERS, "{:?}", row.0);
    }
}

#[test]
fn what_only_fills_the_cache_ends_with_it() {
    let model = everything_on_a_device(&tiny_moe("q8_0", Stacked));
    let mut session = session(&model);
    session.decode(&[5; 40], Logits::None).expect("read");
    let nodes = session.graph_nodes();
    assert_eq!([CHOICE, SUM].map(|row| fusable(&nodes, row)), [N_LAYERS - 1; 2]);
    assert_eq!(fusable(&nodes, KEYS), N_LAYERS);
    assert_eq!(nodes.iter().filter(|node| node.op == "ROPE").count(), 2 * N_LAYERS - 1);
    assert_eq!(session.n_splits(), 2);
}

#[test]
fn any_number_of_experts_is_summed_at_once() {
    let file = tiny_moe("q8_0", Stacked);
    let device = stand_in(64 << 20);
    for (n_used, row) in [
        (3, &["MUL", "VIEW", "VIEW", "VIEW", "ADD", "ADD"][..]),
        (4, &["MUL", "VIEW", "VIEW", "VIEW", "VIEW", "ADD", "ADD", "ADD"]),
    ] {
        let options = ModelOptions { n_expert_used: Some(n_used), ..on_device(device, |_| {}) };
        let model = load(&file.path, &options);
        let mut session = session(&model);
        session.decode(&[5], Logits::Last).expect("read");
        assert_eq!(fusable(&session.graph_nodes(), (row, &[row.len() - 1])), N_LAYERS);
    }
}

/// CUDA records the kernels of a graph and replays them while nodes, sources and addresses are what they were.
#[test]
fn one_graph_at_one_place_serves_many_tokens() {
    let model = everything_on_a_device(&tiny_moe("q8_0", Stacked));
    let mut session = session(&model);
    session.decode(&[5; 200], Logits::Last).expect("read");
    session.decode(&[6], Logits::Last).expect("read");
    let first = session.graph_nodes();
    assert!(first.iter().all(|node| node.address != 0), "every node has a place");
    for token in 7..50 {
        session.decode(&[token], Logits::Last).expect("read");
        assert_eq!(session.graph_nodes(), first, "after token {token}");
    }
    session.decode(&[5; 20], Logits::Last).expect("read");
    session.decode(&[6], Logits::Last).expect("read");
    assert_ne!(session.graph_nodes(), first, "attention looks at the next 256 cells");
}

/// Nobody asks for logits of the others: their results stay in the cache.
#[test]
fn a_micro_batch_is_prepared_while_the_device_computes_the_one_before() {
    let file = tiny_moe("q8_0", Stacked);
    let device = stand_in(64 << 20);
    for change in [|_: &mut PlacementOptions| (), |placement: &mut PlacementOptions| placement.n_cpu_moe = 2]
    {
        let model = load(&file.path, &on_device(device, change));
        let tokens: Vec<u32> = (0..300).map(|i| 3 + i * 7 % 200).collect();
        let new = || {
            let options = SessionOptions { n_batch: 16, n_ubatch: 16, ..session_options() };
            Session::new(&model, &options).expect("a session")
        };
        let mut waiting = new();
        tokens.chunks(16).for_each(|chunk| waiting.decode(chunk, Logits::Last).expect("read"));
        assert_eq!(waiting.n_prepared_ahead(), 0);
        let mut ahead = new();
        ahead.decode(&tokens, Logits::Last).expect("read");
        assert_eq!((ahead.n_prepared_ahead(), ahead.n_past()), (18, 300));
        assert_eq!(ahead.logits(0), waiting.logits(0));

        let mut stopped = new();
        let stop = stopped.stop_flag();
        let mut n_stopped = 0;
        for round in 0..40 {
            stopped.truncate(0);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_micros(round * 200));
                    stop.store(true, Ordering::Relaxed);
                });
                match stopped.decode(&tokens, Logits::Last) {
                    Err(Error::Stopped) => n_stopped += 1,
                    done => done.expect("read"),
                }
            });
            stop.store(false, Ordering::Relaxed);
            let n_read = stopped.n_past();
            assert!(n_read == 300 || n_read % 16 == 0, "{n_read} tokens");
            if n_read < 300 {
                stopped.decode(&tokens[n_read..], Logits::Last).expect("read");
            }
            assert_eq!(stopped.logits(0), waiting.logits(0), "after {n_read} tokens");
        }
        assert!(n_stopped > 0);
    }
}

/// Cells lie token by token on the device and head by head on the host.
#[test]
fn the_order_of_cells_changes_no_result() {
    let file = tiny_moe("q8_0", Stacked);
    let device = stand_in(64 << 20);
    let host = load(&file.path, &ModelOptions { kernels: Some(Kernels::Ggml), ..plain() });
    let other = load(&file.path, &on_device(device, |_| {}));
    let long: Vec<u32> = (0..280).map(|i| 3 + i * 7 % 200).collect();
    for (type_k, type_v, flash_attention) in [
        (TensorType::F16, TensorType::F16, true),
        (TensorType::F16, TensorType::F16, false),
        (TensorType::F32, TensorType::BF16, true),
        (TensorType::Q8_0, TensorType::Q8_0, true),
        (TensorType::Q4_0, TensorType::F16, false),
    ] {
        let options = SessionOptions { type_k, type_v, flash_attention, ..session_options() };
        let answer = |model: &Arc<Model>| {
            let mut session = Session::new(model, &options).expect("a session");
            session.decode(&long, Logits::None).expect("read");
            answers(model, &mut session)
        };
        let worst = difference(&answer(&host), &answer(&other));
        assert_eq!(worst, 0.0, "{type_k:?}, {type_v:?}, flash attention {flash_attention}");
    }
}

/// Else the CPU would, and all keys and values be copied to it for every token.
#[test]
fn a_device_without_a_kernel_for_one_pass_attends_in_steps() {
    let file = tiny_moe("q8_0", Stacked);
    let device = stand_in(64 << 20);
    let host = load(&file.path, &ModelOptions { kernels: Some(Kernels::Ggml), ..plain() });
    let other = load(&file.path, &on_device(device, |_| {}));
    let answer = |model: &Arc<Model>, flash_attention| {
        let options = SessionOptions { type_k: TensorType::IQ4_NL, flash_attention, ..session_options() };
        let mut session = Session::new(model, &options).expect("a session");
        (answers(model, &mut session), session.n_splits())
    };
    let ((expected, _), (found, n_splits)) = (answer(&host, false), answer(&other, true));
    assert_eq!(difference(&expected, &found), 0.0);
    assert_eq!(n_splits, 2);
}
