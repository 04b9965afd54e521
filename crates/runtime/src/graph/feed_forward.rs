//! The feed-forward network: dense, or the weighted sum of the experts a router chooses.

use super::slots::{self, Choices};
use super::taps::Taps;
use super::{linear, linears, multiply};
use crate::kernels::{self, Kernels, Stream};
use crate::model::{ExpertBank, FeedForward};
use ggml::{Graph, Tensor};
use model_spec::TensorRole::{FfnDown, FfnDownExps, FfnGate, FfnGateExps, FfnGateInp, FfnUp, FfnUpExps};

/// `x: [n_embd, n_tokens]` to the same shape. Experts that come from a `stream` are computed by kernels of ours, whichever
/// compute the rest.
pub(super) fn feed_forward(
    g: &Graph,
    kernels: Kernels,
    ffn: &FeedForward,
    x: &Tensor,
    n_used: usize,
    stream: Option<&Stream>,
    watch: &mut Watched<'_>,
) -> Tensor {
    let taps = &mut *watch.taps;
    match ffn {
        FeedForward::Dense { gate, up, down } => {
            taps.layer_input(x, &[FfnGate, FfnUp]);
            let [gate, up] = linears(g, kernels, [gate, up], x);
            let hidden = g.swiglu(&gate, &up); // [n_ff, n_tokens]
            taps.layer_input(&hidden, &[FfnDown]);
            linear(g, kernels, down, &hidden)
        }
        FeedForward::Experts { router, gate, up, down, slots, .. } => {
            taps.layer_input(x, &[FfnGateInp]);
            let chosen = choose(g, kernels, router, x, n_used);
            let banks = [gate, up, down];
            let kept = slots.as_ref().map(|slots| (slots, watch.choices.keep(g, &chosen.ids)));
            if let Some((slots, ids)) = kept
                && watch.choices.by_slots
            {
                let chosen = Chosen { ids, ..chosen };
                return slots::experts(g, kernels, banks, slots, x, &chosen, stream);
            }
            if (kernels == Kernels::Bruce || stream.is_some())
                && let Some(out) = kernels::experts(g, banks, x, &chosen.ids, &chosen.weights, None, stream)
            {
                return out;
            }
            assert!(stream.is_none(), "experts are streamed only to kernels of ours, and types were checked");
            of_experts(g, banks, x, &chosen, taps)
        }
    }
}

/// The weighted sum over the experts of `banks` (gate, up, down), by ggml's kernels.
fn of_experts(g: &Graph, banks: [&ExpertBank; 3], x: &Tensor, chosen: &Chosen, taps: &mut Taps) -> Tensor {
    let [gate, up, down] = banks;
    let kept = taps.keep_ids(g, &chosen.ids);
    if let Some(ids) = &kept {
        taps.expert_input(ids, x, ids, &[FfnGateExps, FfnUpExps]);
    }
    let x = by_choice(g, x);
    let up = project(g, up, &x, &chosen.ids);
    let gate = project(g, gate, &x, &chosen.ids);
    let hidden = g.swiglu(&gate, &up); // [n_ff, n_used, n_tokens]
    if let Some(ids) = &kept {
        taps.expert_input(&hidden, &hidden, ids, &[FfnDownExps]);
    }
    let out = project(g, down, &hidden, &chosen.ids); // [n_embd, n_used, n_tokens]
    sum_of_used(g, &g.mul(&out, &chosen.weights))
}

/// As [`feed_forward`] for each of `inputs`, with experts that are staged; computed by ggml's kernels, on a device. `gate` gives
/// them, and the choice of experts for each of the inputs, when all that was chosen there has arrived.
///
/// # Panics
/// Where the layer has no experts.
pub(super) fn staged<'a>(
    g: &Graph,
    kernels: Kernels,
    ffn: &FeedForward,
    inputs: &[&Tensor],
    n_used: usize,
    gate: impl FnOnce(&[Tensor]) -> ([&'a ExpertBank; 3], Vec<Tensor>),
    watch: &mut Watched<'_>,
) -> Vec<Tensor> {
    let FeedForward::Experts { router, slots, .. } = ffn else { panic!("a layer without experts is staged") };
    let mut choose_for = |x: &&Tensor| {
        watch.taps.layer_input(x, &[FfnGateInp]);
        let chosen = choose(g, kernels, router, x, n_used);
        let ids = match slots {
            Some(_) => watch.choices.keep(g, &chosen.ids),
            None => g.contiguous(&chosen.ids),
        };
        (ids, chosen.weights)
    };
    let (ids, weights): (Vec<_>, Vec<_>) = inputs.iter().map(&mut choose_for).unzip();
    let (banks, ids) = gate(&ids);
    let chosen = ids.into_iter().zip(weights).map(|(ids, weights)| Chosen { ids, weights });
    inputs.iter().zip(chosen).map(|(x, chosen)| of_experts(g, banks, x, &chosen, watch.taps)).collect()
}

/// What is seen of a feed-forward network beside its result.
pub(super) struct Watched<'a> {
    pub taps: &'a mut Taps,
    pub choices: &'a mut Choices,
}

/// `x: [n_embd, n_tokens]` as each token's row for all of its experts: `[n_embd, 1, n_tokens]`.
pub(super) fn by_choice(g: &Graph, x: &Tensor) -> Tensor {
    let [n_embd, n_tokens, ..] = x.ne();
    g.reshape(x, &[n_embd, 1, n_tokens])
}

/// The experts each token takes.
pub(super) struct Chosen {
    /// `[n_used, n_tokens]`, I32, the likeliest first.
    pub ids: Tensor,
    /// `[1, n_used, n_tokens]`, F32; sums to 1 over the used.
    pub weights: Tensor,
}

/// Smallest positive normal F16: keeps the division defined where every probability is zero.
const MIN_WEIGHT_SUM: f32 = 6.103_515_6e-5;

/// Softmax over all experts in F32, the `n_used` likeliest, renormalised to sum 1.
fn choose(g: &Graph, kernels: Kernels, router: &Tensor, x: &Tensor, n_used: usize) -> Chosen {
    let probabilities = g.soft_max(&multiply(g, kernels, router, x)); // [n_expert, n_tokens]
    let [n_expert, n_tokens, ..] = probabilities.ne();
    let ids = g.top_k(&probabilities, n_used);
    let weights = g.get_rows(&g.reshape(&probabilities, &[1, n_expert, n_tokens]), &ids);
    let weights = g.reshape(&weights, &[n_used, n_tokens]);
    let sum = g.clamp(&g.sum_rows(&weights), MIN_WEIGHT_SUM, f32::INFINITY);
    let weights = g.reshape(&g.div(&weights, &sum), &[1, n_used, n_tokens]);
    g.expand(&weights);
    Chosen { ids, weights }
}

/// Each chosen expert's matrix times the token's row: `[n_out, n_used, n_tokens]`.
///
/// Where the experts lie in several groups, each group computes with its own members' numbers and the results of
/// tokens that chose somebody else are masked away.
pub(super) fn project(g: &Graph, bank: &ExpertBank, x: &Tensor, ids: &Tensor) -> Tensor {
    let [n_used, n_tokens, ..] = ids.ne();
    let mut sum: Option<Tensor> = None;
    for group in &bank.groups {
        let part = match &group.route {
            None => g.mul_mat_id(&group.weights, x, ids),
            Some(route) => {
                let flat = g.reshape(&g.contiguous(ids), &[n_used * n_tokens]);
                let member = g.reshape(&g.get_rows(&route.member, &flat), &[n_used, n_tokens]);
                let mask = g.reshape(&g.get_rows(&route.mask, &flat), &[1, n_used, n_tokens]);
                g.mul(&g.mul_mat_id_repeated(&group.weights, x, &member), &mask)
            }
        };
        sum = Some(match sum {
            Some(before) => g.add(&before, &part),
            None => part,
        });
    }
    sum.expect("a bank has at least one group")
}

/// Adds up `[n_embd, n_used, n_tokens]` over the used experts: `[n_embd, n_tokens]`.
///
/// All views come before the sums: so back ends find weighting and summing in a row, and make one kernel of them.
pub(super) fn sum_of_used(g: &Graph, out: &Tensor) -> Tensor {
    let [n_embd, n_used, n_tokens, _] = out.ne();
    let nb = out.nb();
    let expert = |index: usize| {
        let row = g.view(out, [n_embd, n_tokens, 1], [nb[2], nb[2] * n_tokens], index * nb[1]);
        g.expand(&row);
        row
    };
    let experts: Vec<Tensor> = (0..n_used).map(expert).collect();
    match &experts[..] {
        [only] => g.contiguous(only),
        [first, others @ ..] => others.iter().fold(first.clone(), |sum, next| g.add(&sum, next)),
        [] => unreachable!("a token takes at least one expert"),
    }
}
