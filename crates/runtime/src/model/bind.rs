//! Finds the tensor of every role, checks its shape and type, and creates the handles the graph will use.

use super::{ExpertBank, ExpertGroup, FeedForward, GroupRoute, Layer, Linear, ModelOptions, Weights, stream};
use crate::Error;
use crate::kernels::Kernels;
use crate::residency::{Placement, Repack};
use crate::slots::LayerSlots;
use expert_pool::{LayerSource, MatrixSource};
use ggml::{BufferType, Context, Device, DeviceKind, Tensor, Type};
use gguf::{Gguf, TensorInfo};
use model_spec::{HyperParams, TensorId, TensorKind, TensorRole};
use quants::TensorType;
use std::sync::Arc;

/// A handle without data yet, and where its data comes from and goes to.
pub(super) struct Pending<'a> {
    pub tensor: Tensor,
    /// One tensor of the file, or the experts to be laid one after the other.
    pub pieces: Vec<Piece<'a>>,
    pub place: BufferType,
    /// Whether the bytes of the file can be used where they are mapped.
    pub in_place: bool,
}

/// Bytes of a tensor in the file: all of it, or one expert's.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    pub info: &'a TensorInfo,
    /// Bytes into the tensor.
    pub start: usize,
    pub size: usize,
}

impl<'a> Piece<'a> {
    /// All of a tensor.
    pub fn whole(info: &'a TensorInfo) -> Piece<'a> {
        Piece { info, start: 0, size: info.size as usize }
    }
}

/// A small table made here rather than read.
pub(super) enum Table {
    Ints(Tensor, Vec<i32>),
    Floats(Tensor, Vec<f32>),
}

/// How the graph uses a tensor, which decides in which layouts it can lie.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Rows are looked up, or elements added or multiplied.
    Elements,
    /// All tokens are multiplied with it.
    Multiply,
    /// Each token is multiplied with the experts it takes.
    MultiplyByExpert,
}

pub(super) struct Binder<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) hparams: &'a HyperParams,
    pub(super) placement: &'a Placement,
    pub(super) options: &'a ModelOptions,
    pub(super) context: Context,
    pub pending: Vec<Pending<'a>>,
    pub tables: Vec<Table>,
    /// The layers that have slots, and where these are.
    pub slots: Vec<(BufferType, Arc<LayerSlots>)>,
    /// Layers whose experts are streamed, in order.
    pub streamed: Vec<LayerSource>,
    /// Token embeddings that are read row by row.
    pub embeddings: Option<&'a TensorInfo>,
}

impl<'a> Binder<'a> {
    pub fn new(
        gguf: &'a Gguf,
        hparams: &'a HyperParams,
        placement: &'a Placement,
        options: &'a ModelOptions,
    ) -> Self {
        // Every tensor of the file at most twice (tried contiguous, then strided) and two tables per expert group.
        // Slots: three tensors and two tables for each group, of which there are no more than experts, and one table.
        let slots = hparams.n_layer as usize * (5 * hparams.n_expert as usize + 1);
        let context = Context::new(4 * gguf.tensors().len() + slots + 9);
        let (pending, tables, slots, streamed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let embeddings = None;
        Binder { gguf, hparams, placement, options, context, pending, tables, slots, streamed, embeddings }
    }

    /// Handles for all roles.
    pub fn weights(&mut self) -> Result<Weights, Error> {
        let token_embd = self.token_embeddings()?;
        let output_norm = self.vector(TensorId::global(TensorRole::OutputNorm))?;
        let output = self.output(&token_embd)?;
        let rope_freqs = TensorId::global(TensorRole::RopeFreqs);
        let rope_freqs = self.find(&rope_freqs).is_some().then(|| self.vector(rope_freqs)).transpose()?;
        let layers = (0..self.hparams.n_layer).map(|layer| self.layer(layer)).collect::<Result<_, _>>()?;
        let anchor = (!self.streamed.is_empty()).then(|| self.anchor());
        Ok(Weights { token_embd, output_norm, output, rope_freqs, anchor, layers })
    }

    /// The table of embeddings; a handle without data where experts are streamed and the table isn't the output matrix too.
    fn token_embeddings(&mut self) -> Result<Tensor, Error> {
        let id = TensorId::global(TensorRole::TokenEmbd);
        let is_tied = self.find(&TensorId::global(TensorRole::Output)).is_none();
        let on_host = self.placement.place(&id.name(), &id) == BufferType::cpu();
        if is_tied || !on_host || self.options.expert_pool_bytes.is_none() {
            return self.matrix(id, Use::Elements);
        }
        let info = self.checked(&id)?;
        self.check_computable(info)?;
        self.embeddings = Some(info);
        Ok(self.context.tensor(&info.name, Type::from_id(info.ty.id())?, &extents(info)))
    }

    /// The output matrix; where the file has none, the token embeddings serve, in a copy of their own if the output is
    /// computed elsewhere than where the embeddings are.
    fn output(&mut self, token_embd: &Tensor) -> Result<Tensor, Error> {
        let id = TensorId::global(TensorRole::Output);
        if self.find(&id).is_some() {
            return self.matrix(id, Use::Multiply);
        }
        let place = self.placement.place(&id.name(), &id);
        let info = self.info(&TensorId::global(TensorRole::TokenEmbd))?;
        let output = self.create(&id.name(), &[info], place, Use::Multiply)?;
        if output.place != BufferType::cpu() {
            return Ok(output.tensor.clone());
        }
        self.pending.pop();
        Ok(token_embd.clone())
    }

    /// A number in host memory.
    fn anchor(&mut self) -> Tensor {
        let anchor = self.context.tensor("experts.anchor", Type::F32, &[1]);
        self.tables.push(Table::Floats(anchor.clone(), vec![0.0]));
        anchor
    }

    fn layer(&mut self, layer: u32) -> Result<Layer, Error> {
        use TensorRole::*;
        let id = |role| TensorId::in_layer(role, layer);
        Ok(Layer {
            attn_norm: self.vector(id(AttnNorm))?,
            q: self.linear(id(AttnQ))?,
            k: self.linear(id(AttnK))?,
            v: self.linear(id(AttnV))?,
            o: self.linear(id(AttnOutput))?,
            ffn_norm: self.vector(id(FfnNorm))?,
            ffn: if self.hparams.is_moe() {
                let router = self.matrix(id(FfnGateInp), Use::Multiply)?;
                let is_streamed = self.streams(layer)?;
                let (gate, gates) = self.experts(FfnGate, layer, is_streamed)?;
                let (up, ups) = self.experts(FfnUp, layer, is_streamed)?;
                let (down, downs) = self.experts(FfnDown, layer, is_streamed)?;
                let streamed = is_streamed.then(|| {
                    self.streamed.push(LayerSource { gate: gates, up: ups, down: downs });
                    self.streamed.len() - 1
                });
                let slots = self.layer_slots(layer, streamed)?;
                FeedForward::Experts { router, gate, up, down, slots, streamed }
            } else {
                FeedForward::Dense {
                    gate: self.linear(id(FfnGate))?,
                    up: self.linear(id(FfnUp))?,
                    down: self.linear(id(FfnDown))?,
                }
            },
        })
    }

    fn linear(&mut self, id: TensorId) -> Result<Linear, Error> {
        let bias = TensorId { kind: TensorKind::Bias, ..id };
        let bias = self.find(&bias).is_some().then(|| self.vector(bias)).transpose()?;
        Ok(Linear { weight: self.matrix(id, Use::Multiply)?, bias })
    }

    /// A tensor that is added or multiplied element by element: ggml wants it in F32.
    fn vector(&mut self, id: TensorId) -> Result<Tensor, Error> {
        let info = self.checked(&id)?;
        if info.ty != TensorType::F32 {
            return Err(self.wrong_type(info, "F32"));
        }
        let place = self.placement.place(&info.name, &id);
        Ok(self.create(&info.name, &[info], place, Use::Elements)?.tensor.clone())
    }

    fn matrix(&mut self, id: TensorId, used: Use) -> Result<Tensor, Error> {
        let info = self.checked(&id)?;
        self.check_computable(info)?;
        let place = self.placement.place(&info.name, &id);
        Ok(self.create(&info.name, &[info], place, used)?.tensor.clone())
    }

    /// One projection of all experts: the stacked tensor where the file has it, else each expert's own. And where they lie
    /// in the file, when they are streamed.
    fn experts(
        &mut self,
        role: TensorRole,
        layer: u32,
        is_streamed: bool,
    ) -> Result<(ExpertBank, Vec<MatrixSource>), Error> {
        let n_expert = self.hparams.n_expert;
        let stacked = TensorId::in_layer(role.stacked().expect("a feed-forward projection"), layer);
        let first = TensorId::of_expert(role, layer, 0);
        if self.find(&stacked).is_some() || self.find(&first).is_none() {
            let (weights, sources) = if is_streamed {
                let info = self.checked(&stacked)?;
                self.check_streamable(info)?;
                let handle = self.context.tensor(&info.name, Type::from_id(info.ty.id())?, &extents(info));
                (handle, stream::sources(&[info], n_expert as usize))
            } else {
                (self.matrix(stacked, Use::MultiplyByExpert)?, Vec::new())
            };
            let groups = vec![ExpertGroup { weights, members: Vec::new(), route: None }];
            return Ok((ExpertBank { groups }, sources));
        }
        let mut groups: Vec<(TensorType, BufferType, Vec<u32>)> = Vec::new();
        for expert in 0..n_expert {
            let id = TensorId::of_expert(role, layer, expert);
            let info = self.checked(&id)?;
            self.check_computable(info)?;
            let place = self.placement.place(&info.name, &id);
            match groups.iter_mut().find(|(ty, at, _)| *ty == info.ty && *at == place) {
                Some((_, _, members)) => members.push(expert),
                None => groups.push((info.ty, place, vec![expert])),
            }
        }
        let infos = |members: &mut dyn Iterator<Item = u32>| {
            members.map(|expert| self.info(&TensorId::of_expert(role, layer, expert))).collect()
        };
        let all: Vec<&TensorInfo> = infos(&mut (0..n_expert))?;
        let of_group: Vec<Vec<&TensorInfo>> = groups
            .iter()
            .map(|(_, _, members)| infos(&mut members.iter().copied()))
            .collect::<Result<_, Error>>()?;
        let single = groups.len() == 1;
        let groups =
            groups.into_iter().zip(of_group).enumerate().map(|(number, ((_, place, members), infos))| {
                let name = format!("blk.{layer}.{}.group{number}", role.base_name());
                if is_streamed {
                    self.check_streamable(infos[0])?;
                    let mut ne = extents(infos[0]);
                    ne.push(infos.len());
                    let weights = self.context.tensor(&name, Type::from_id(infos[0].ty.id())?, &ne);
                    return Ok(ExpertGroup { weights, members, route: None });
                }
                let weights = self.create(&name, &infos, place, Use::MultiplyByExpert)?.tensor.clone();
                let route = (!single).then(|| self.route(&name, &members));
                Ok(ExpertGroup { weights, members, route })
            });
        let groups = groups.collect::<Result<_, Error>>()?;
        let sources = if is_streamed { stream::sources(&all, 1) } else { Vec::new() };
        Ok((ExpertBank { groups }, sources))
    }

    fn check_streamable(&self, info: &TensorInfo) -> Result<(), Error> {
        let served = quants::matmul::supports(info.ty);
        let expected = "for --expert-pool a type that --kernels bruce multiplies";
        if served { Ok(()) } else { Err(self.wrong_type(info, expected)) }
    }

    fn route(&mut self, name: &str, members: &[u32]) -> GroupRoute {
        let n_expert = self.hparams.n_expert as usize;
        let mut number = vec![0i32; n_expert];
        let mut belongs = vec![0f32; n_expert];
        for (index, expert) in members.iter().enumerate() {
            number[*expert as usize] = index as i32;
            belongs[*expert as usize] = 1.0;
        }
        let member = self.context.tensor(&format!("{name}.member"), Type::I32, &[1, n_expert]);
        let mask = self.context.tensor(&format!("{name}.mask"), Type::F32, &[1, n_expert]);
        self.tables.push(Table::Ints(member.clone(), number));
        self.tables.push(Table::Floats(mask.clone(), belongs));
        GroupRoute { member, mask }
    }

    pub(super) fn find(&self, id: &TensorId) -> Option<&'a TensorInfo> {
        self.gguf.tensor(&id.name())
    }

    pub(super) fn info(&self, id: &TensorId) -> Result<&'a TensorInfo, Error> {
        self.find(id)
            .ok_or_else(|| Error::MissingTensor { path: self.gguf.path().to_path_buf(), name: id.name() })
    }

    /// The tensor of a role, with the shape that the hyperparameters ask for.
    fn checked(&self, id: &TensorId) -> Result<&'a TensorInfo, Error> {
        let info = self.info(id)?;
        let expected = id.ne(self.hparams);
        // A trailing extent of 1 may be written out or left away.
        let trimmed = |ne: &[u64]| -> Vec<u64> {
            let used = ne.iter().rposition(|n| *n != 1).map_or(1, |last| last + 1);
            ne[..used.min(ne.len())].to_vec()
        };
        if trimmed(&info.ne) == trimmed(&expected) {
            return Ok(info);
        }
        let path = self.gguf.parts()[info.part].clone();
        Err(Error::Shape { path, name: info.name.clone(), found: info.ne.to_vec(), expected })
    }

    fn check_computable(&self, info: &TensorInfo) -> Result<(), Error> {
        use TensorType::*;
        // Integers and the formats that ggml uses for activations only.
        let computable = !matches!(info.ty, I8 | I16 | I32 | I64 | F64 | Q8_1 | Q8_K);
        if computable { Ok(()) } else { Err(self.wrong_type(info, "a type for weights")) }
    }

    fn wrong_type(&self, info: &TensorInfo, expected: &'static str) -> Error {
        let path = self.gguf.parts()[info.part].clone();
        Error::TensorType { path, name: info.name.clone(), found: info.ty.name(), expected }
    }

    /// A handle for one tensor of the file, or for several of one type and shape as one stacked tensor.
    fn create(
        &mut self,
        name: &str,
        pieces: &[&'a TensorInfo],
        place: BufferType,
        used: Use,
    ) -> Result<&Pending<'a>, Error> {
        let first = pieces[0];
        let ty = Type::from_id(first.ty.id())?;
        let mut ne = extents(first);
        if pieces.len() > 1 {
            ne.truncate(2);
            ne.push(pieces.len());
        }
        let mut pending = Pending {
            tensor: self.context.tensor(name, ty, &ne),
            pieces: pieces.iter().map(|info| Piece::whole(info)).collect(),
            place,
            in_place: false,
        };
        if place == BufferType::cpu() {
            if let Some(repacked) = self.repacked(&pending.tensor, first.ty, used) {
                pending.place = repacked;
            } else if self.options.use_mmap && first.offset.is_multiple_of(4) {
                if pieces.len() == 1 {
                    pending.in_place = true;
                } else if let Some(stride) = stride(pieces).filter(|_| self.placement.devices().is_empty()) {
                    // The scheduler copies single experts to a device as if they lay back to back.
                    pending.tensor = self.context.strided_tensor(name, ty, [ne[0], ne[1], ne[2]], stride);
                    pending.in_place = true;
                }
            }
        }
        self.pending.push(pending);
        Ok(self.pending.last().expect("just pushed"))
    }

    /// The layout of its own that the CPU prefers for this weight.
    fn repacked(&self, weight: &Tensor, ty: TensorType, used: Use) -> Option<BufferType> {
        // Our own kernels read the layout of the file.
        let served = self.options.kernels == Some(Kernels::Bruce) && quants::matmul::supports(ty);
        let asked_for = self.options.placement.repack == Repack::On;
        if used == Use::Elements || (served && !asked_for) {
            return None;
        }
        let cpu = Device::find(DeviceKind::Cpu)?;
        let by_expert = used == Use::MultiplyByExpert;
        self.placement.repacked().iter().copied().find(|ty| cpu.multiplies_from(*ty, weight, by_expert))
    }
}

fn extents(info: &TensorInfo) -> Vec<usize> {
    info.ne.iter().map(|n| *n as usize).collect()
}

/// The distance between neighbours when tensors of one size lie at equal distances in one file.
fn stride(pieces: &[&TensorInfo]) -> Option<usize> {
    let distance = pieces[1].offset.checked_sub(pieces[0].offset)?;
    let even = pieces.windows(2).all(|pair| pair[1].offset.checked_sub(pair[0].offset) == Some(distance));
    let together = pieces.iter().all(|p| p.part == pieces[0].part);
    (even && together && distance >= pieces[0].size).then_some(distance as usize)
}
