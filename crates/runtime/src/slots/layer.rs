//! The slots of one layer: stacks of projections on its device, and the tables that the graph finds experts by.

use super::state::Slot;
use expert_pool::Pool;
use ggml::{Context, Tensor, Type};

/// Where one projection of an expert is in the model file.
#[derive(Clone, Copy)]
pub(crate) struct ExpertSource {
    /// Which part of a split file.
    pub part: usize,
    /// Bytes from the start of that file.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// What a group of slots is made of.
pub(crate) struct GroupPlan {
    /// Gate, up and down, `[n_in, n_out, n_slots]` each.
    pub stacks: [Tensor; 3],
    /// The experts in the slots at first.
    pub members: Vec<u32>,
    /// Experts of the stacks' types, which is to say those that fit.
    pub candidates: Vec<u32>,
}

/// Slots for experts of one combination of types.
pub(crate) struct SlotGroup {
    /// Gate, up and down, `[n_in, n_out, n_slots]` each.
    pub stacks: [Tensor; 3],
    /// `[1, n_expert]`, I32: the slot of each expert, and any slot in use for those that have none.
    pub slot: Tensor,
    /// `[1, n_expert]`, F32: 1 for experts that have a slot here, 0 for the others.
    pub mask: Tensor,
    members: Vec<u32>,
    candidates: Vec<u32>,
}

/// The slots of a layer.
pub(crate) struct LayerSlots {
    layer: usize,
    pub groups: Vec<SlotGroup>,
    /// `[1, n_expert]`, F32: 1 for experts without a slot, which the host computes.
    pub missing: Tensor,
    /// By number of the expert: gate, up and down.
    sources: Vec<[ExpertSource; 3]>,
    /// The layer's number in the pool that the host's experts come from, where they are streamed.
    pub streamed: Option<usize>,
}

impl LayerSlots {
    /// Slots whose tables have no place yet.
    pub fn new(
        context: &Context,
        layer: u32,
        plans: Vec<GroupPlan>,
        sources: Vec<[ExpertSource; 3]>,
        streamed: Option<usize>,
    ) -> Self {
        let n_expert = sources.len();
        let groups = plans.into_iter().enumerate().map(|(number, plan)| SlotGroup {
            stacks: plan.stacks,
            slot: context.table(&format!("blk.{layer}.slots{number}.slot"), Type::I32, &[1, n_expert]),
            mask: context.table(&format!("blk.{layer}.slots{number}.mask"), Type::F32, &[1, n_expert]),
            members: plan.members,
            candidates: plan.candidates,
        });
        let groups = groups.collect();
        let missing = context.table(&format!("blk.{layer}.slots.missing"), Type::F32, &[1, n_expert]);
        LayerSlots { layer: layer as usize, groups, missing, sources, streamed }
    }

    /// Number of the layer in the model.
    pub fn layer(&self) -> usize {
        self.layer
    }

    pub fn n_expert(&self) -> usize {
        self.sources.len()
    }

    /// All tables, which want a place on the device.
    pub fn tables(&self) -> impl Iterator<Item = Tensor> {
        let of_group = |group: &SlotGroup| [group.slot.clone(), group.mask.clone()];
        self.groups.iter().flat_map(of_group).chain([self.missing.clone()])
    }

    /// The expert in each slot of each group when the model is loaded.
    pub(super) fn first_occupants(&self) -> Vec<Vec<Slot>> {
        self.groups.iter().map(|group| group.members.iter().map(|e| Slot::Holds(*e)).collect()).collect()
    }

    /// Experts that fit into the slots of a group.
    pub fn candidates(&self, group: usize) -> &[u32] {
        &self.groups[group].candidates
    }

    /// Whether experts may change places in a group.
    ///
    /// While a group's only slot is being written, results nobody wants are computed from what is in it, half one expert
    /// and half another. They are multiplied by zero, which makes zero of every finite number; and every type keeps its
    /// scales in single numbers, each of them from a sound expert, but for IQ1_M, which strews them over a block.
    pub fn may_move(&self, group: usize) -> bool {
        let group = &self.groups[group];
        let strewn = |stack: &Tensor| stack.ty().id() == quants::TensorType::IQ1_M.id();
        group.members.len() > 1 || !group.stacks.iter().any(strewn)
    }

    /// Bytes of all projections of an expert.
    pub fn expert_bytes(&self, expert: u32) -> u64 {
        self.sources[expert as usize].iter().map(|source| source.size as u64).sum()
    }

    /// Where gate, up and down of an expert are in the file.
    pub fn sources(&self, expert: u32) -> [ExpertSource; 3] {
        self.sources[expert as usize]
    }

    /// Writes the tables for these occupants, by group and slot, and tells the pool of them. No graph may be computing with
    /// them.
    pub(super) fn write_tables(&self, occupants: &[Vec<Slot>], pool: Option<&Pool>) {
        let n_expert = self.n_expert();
        let mut missing = vec![1f32; n_expert];
        for (group, occupants) in self.groups.iter().zip(occupants) {
            // Products nobody wants are computed with a slot that is in use, as the others may be being written.
            let spare = occupants.iter().position(|slot| slot.holds().is_some()).unwrap_or(0) as i32;
            let (mut slot, mut mask) = (vec![spare; n_expert], vec![0f32; n_expert]);
            for (index, occupant) in (0..).zip(occupants) {
                if let Some(expert) = occupant.holds() {
                    slot[expert as usize] = index;
                    mask[expert as usize] = 1.0;
                    missing[expert as usize] = 0.0;
                }
            }
            group.slot.write_values(&slot);
            group.mask.write_values(&mask);
        }
        self.missing.write_values(&missing);
        if let (Some(pool), Some(layer)) = (pool, self.streamed) {
            let elsewhere: Vec<bool> = missing.iter().map(|missing| *missing == 0.0).collect();
            pool.set_elsewhere(layer, &elsewhere);
        }
    }
}
