//! Finds what goes into the slots of a layer.

use super::bind::{Binder, Pending, Piece};
use crate::Error;
use crate::slots::{ExpertSource, GroupPlan, LayerSlots};
use ggml::{BufferType, Type};
use model_spec::{TensorId, TensorRole};
use quants::TensorType;
use std::sync::Arc;

/// The projections of an expert, in the order used for its slots.
const PROJECTIONS: [TensorRole; 3] = [TensorRole::FfnGate, TensorRole::FfnUp, TensorRole::FfnDown];

impl<'a> Binder<'a> {
    /// The slots of a layer, where it has any: one stack of each projection for each combination of types among the
    /// experts that the placement puts there.
    /// `streamed` is the layer's number in the pool of the host's experts.
    pub(super) fn layer_slots(
        &mut self,
        layer: u32,
        streamed: Option<usize>,
    ) -> Result<Option<Arc<LayerSlots>>, Error> {
        let Some((place, residents)) = self.placement.slots(layer) else { return Ok(None) };
        let pieces: Vec<[Piece<'a>; 3]> = (0..self.hparams.n_expert)
            .map(|expert| self.expert_pieces(layer, expert))
            .collect::<Result<_, _>>()?;
        let types = |expert: u32| pieces[expert as usize].map(|piece| piece.info.ty);
        let mut kinds: Vec<([TensorType; 3], Vec<u32>)> = Vec::new();
        for expert in residents {
            match kinds.iter_mut().find(|(known, _)| *known == types(*expert)) {
                Some((_, members)) => members.push(*expert),
                None => kinds.push((types(*expert), vec![*expert])),
            }
        }
        let mut groups = Vec::new();
        for (number, (kind, members)) in kinds.into_iter().enumerate() {
            let mut stacks = Vec::new();
            for (index, role) in PROJECTIONS.iter().enumerate() {
                let name = format!("blk.{layer}.{}.slots{number}", role.base_name());
                let pieces = members.iter().map(|expert| pieces[*expert as usize][index]).collect();
                stacks.push(self.stack(&name, pieces, place)?);
            }
            let candidates = (0..self.hparams.n_expert).filter(|expert| types(*expert) == kind).collect();
            let stacks = stacks.try_into().unwrap_or_else(|_| unreachable!("three projections"));
            groups.push(GroupPlan { stacks, members, candidates });
        }
        let source = |piece: Piece<'a>| ExpertSource {
            part: piece.info.part,
            offset: piece.info.offset as usize + piece.start,
            size: piece.size,
        };
        let sources = pieces.into_iter().map(|three| three.map(source)).collect();
        let slots = Arc::new(LayerSlots::new(&self.context, layer, groups, sources, streamed));
        self.slots.push((place, Arc::clone(&slots)));
        Ok(Some(slots))
    }

    /// Where an expert's projections are in the file, whichever way it stores them.
    fn expert_pieces(&self, layer: u32, expert: u32) -> Result<[Piece<'a>; 3], Error> {
        let mut pieces = Vec::new();
        for role in PROJECTIONS {
            let stacked = TensorId::in_layer(role.stacked().expect("a feed-forward projection"), layer);
            pieces.push(match self.find(&stacked) {
                Some(info) => {
                    let size = info.size as usize / self.hparams.n_expert as usize;
                    Piece { info, start: expert as usize * size, size }
                }
                None => Piece::whole(self.info(&TensorId::of_expert(role, layer, expert))?),
            });
        }
        Ok(pieces.try_into().unwrap_or_else(|_| unreachable!("three projections")))
    }

    /// `[n_in, n_out, n_slots]` on a device.
    fn stack(
        &mut self,
        name: &str,
        pieces: Vec<Piece<'a>>,
        place: BufferType,
    ) -> Result<ggml::Tensor, Error> {
        let info = pieces[0].info;
        let ne = [info.ne[0] as usize, info.ne[1] as usize, pieces.len()];
        let tensor = self.context.tensor(name, Type::from_id(info.ty.id())?, &ne);
        self.pending.push(Pending { tensor: tensor.clone(), pieces, place, in_place: false });
        Ok(tensor)
    }
}
