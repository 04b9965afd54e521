//! Where each layer's experts lie in the stacks of its device, and where they come from.

use super::sweep::{N_PROJECTIONS, N_STACKS, Order, Stop};
use crate::model::{ExpertBank, ExpertGroup, FeedForward, GroupRoute, Model};
use crate::slots::LayerSlots;
use ggml::{Buffer, BufferType, Context, Device, Tensor, Type};
use std::sync::Arc;

/// One projection of an expert.
pub(super) struct Matrix {
    /// Bytes into the stack.
    pub offset: usize,
    pub size: usize,
    /// Bytes after it that kernels read beyond the end of a row, and which have to be numbers.
    pub padding: usize,
    /// Where it is in host memory; `None` where it is streamed.
    pub source: Option<(Tensor, usize)>,
}

/// A layer whose experts are staged.
pub(super) struct Layer {
    pub device: usize,
    /// How many layers of the device come before it.
    turn: usize,
    /// By number of the expert.
    pub experts: Vec<[Matrix; N_PROJECTIONS]>,
    pub slots: Option<Arc<LayerSlots>>,
    /// The layer's number in the pool that its experts come from.
    pub streamed: Option<usize>,
    /// Gate, up and down, in each of the device's stacks.
    banks: [[ExpertBank; N_PROJECTIONS]; N_STACKS],
    /// The banks' tensors: number of the stack, and where they begin there.
    places: Vec<(Tensor, usize, usize)>,
}

impl Layer {
    /// Gate, up and down where this order has them.
    pub fn banks(&self, order: Order) -> &[ExpertBank; N_PROJECTIONS] {
        &self.banks[order.stack(self.device, self.turn)]
    }

    /// Whether experts may be left out that nobody chose. Not where kernels read beyond the end of one into the next, nor
    /// where those of other groups are computed too and masked: what is there must be numbers.
    fn may_skip(&self) -> bool {
        let is_padded = |matrices: &[Matrix; N_PROJECTIONS]| matrices.iter().any(|m| m.padding > 0);
        !self.experts.iter().any(is_padded) && self.banks[0].iter().all(|bank| bank.groups.len() == 1)
    }
}

/// All layers of a model that can be staged, without memory yet.
pub(super) struct Layout {
    pub devices: Vec<Device>,
    pub layers: Vec<Layer>,
    /// By number of the layer in the model.
    pub staged: Vec<Option<usize>>,
    /// Bytes of a stack, by device.
    pub stack_bytes: Vec<usize>,
    /// By device.
    tables: Vec<(usize, Table)>,
    context: Context,
}

enum Table {
    Ints(Tensor, Vec<i32>),
    Floats(Tensor, Vec<f32>),
}

impl Layout {
    /// What can be staged: experts that lie on the host, in the layout of files, while the rest of their layer lies on a
    /// device that can multiply with them.
    pub fn new(model: &Model) -> Layout {
        let weights = model.weights();
        let n_groups: usize = weights.layers.iter().flat_map(|layer| banks(&layer.ffn)).flatten().count();
        let mut layout = Layout {
            devices: model.placement().devices().to_vec(),
            layers: Vec::new(),
            staged: vec![None; weights.layers.len()],
            stack_bytes: vec![0; model.placement().devices().len()],
            tables: Vec::new(),
            // Two tables and a tensor in each stack for each group, and the stacks.
            context: Context::new((2 + N_STACKS) * n_groups + N_STACKS * model.placement().devices().len()),
        };
        for (number, layer) in weights.layers.iter().enumerate() {
            let place = model.placement().place_cache(number as u32);
            let device = layout.devices.iter().position(|device| device.buffer_type() == place);
            if let Some(device) = device {
                layout.add(number, device, &layer.ffn);
            }
        }
        layout
    }

    fn add(&mut self, number: usize, device: usize, ffn: &FeedForward) {
        let FeedForward::Experts { slots, streamed, .. } = ffn else { return };
        let on_host = |group: &ExpertGroup| streamed.is_some() || group.weights.is_host();
        if !banks(ffn).into_iter().flatten().all(on_host) {
            return;
        }
        let memory = self.devices[device].buffer_type();
        let n_expert = banks(ffn)[0].iter().map(|group| group.weights.ne()[2]).sum();
        let mut experts: Vec<[Option<Matrix>; N_PROJECTIONS]> =
            (0..n_expert).map(|_| std::array::from_fn(|_| None)).collect();
        let (mut end, mut tables, mut places) = (0usize, Vec::new(), Vec::new());
        let mut staged: [[ExpertBank; N_PROJECTIONS]; N_STACKS] = Default::default();
        for (projection, groups) in banks(ffn).into_iter().enumerate() {
            for (index, group) in groups.iter().enumerate() {
                let name = format!("blk.{number}.staged{projection}.group{index}");
                let ne = group.weights.ne();
                let tensors: [Tensor; N_STACKS] =
                    std::array::from_fn(|_| self.context.tensor(&name, group.weights.ty(), &ne[..3]));
                let tensor = &tensors[0];
                if !self.devices[device].multiplies_from(memory, tensor, true) {
                    return;
                }
                let start = end.next_multiple_of(memory.alignment());
                end = start + memory.alloc_size(tensor);
                let size = tensor.nb()[2];
                for member in 0..ne[2] {
                    let expert = group.members.get(member).map_or(member, |expert| *expert as usize);
                    let padding = if member + 1 == ne[2] { end - start - tensor.n_bytes() } else { 0 };
                    let source =
                        streamed.is_none().then(|| (group.weights.clone(), member * group.weights.nb()[2]));
                    let offset = start + member * size;
                    experts[expert][projection] = Some(Matrix { offset, size, padding, source });
                }
                let route =
                    (groups.len() > 1).then(|| self.route(&name, &group.members, n_expert, &mut tables));
                for (stack, (banks, weights)) in staged.iter_mut().zip(tensors).enumerate() {
                    places.push((weights.clone(), stack, start));
                    let group = ExpertGroup { weights, members: group.members.clone(), route: route.clone() };
                    banks[projection].groups.push(group);
                }
            }
        }
        let whole = |expert: [Option<Matrix>; N_PROJECTIONS]| {
            let mut matrices = expert.into_iter().flatten();
            let all = std::array::from_fn(|_| matrices.next());
            all.map(|matrix| matrix.expect("every expert has three projections"))
        };
        self.stack_bytes[device] = self.stack_bytes[device].max(end);
        self.tables.extend(tables.into_iter().map(|table| (device, table)));
        self.staged[number] = Some(self.layers.len());
        self.layers.push(Layer {
            device,
            turn: self.layers.iter().filter(|layer| layer.device == device).count(),
            experts: experts.into_iter().map(whole).collect(),
            slots: slots.clone(),
            streamed: *streamed,
            places,
            banks: staged,
        });
    }

    /// Bytes of all stacks of each device.
    pub fn bytes(&self) -> Vec<(BufferType, u64)> {
        let of_device = |(index, device): (usize, &Device)| {
            let bytes = self.n_stacks(index) as u64 * self.stack_bytes[index] as u64;
            (device.buffer_type(), bytes)
        };
        self.devices.iter().enumerate().map(of_device).filter(|(_, bytes)| *bytes > 0).collect()
    }

    fn n_stacks(&self, device: usize) -> usize {
        self.layers.iter().filter(|layer| layer.device == device).count().min(N_STACKS)
    }

    /// For each layer what the order of copying depends on.
    pub fn stops(&self) -> Vec<Stop> {
        let of_layer = |layer: &Layer| Stop {
            device: layer.device,
            n_expert: layer.experts.len(),
            may_skip: layer.may_skip(),
            has_slots: layer.slots.is_some(),
        };
        self.layers.iter().map(of_layer).collect()
    }

    /// Takes memory for the stacks, as bytes and by device, and gives the layers' tensors their places there.
    ///
    /// # Errors
    /// [`ggml::Error::OutOfMemory`].
    pub fn allocate(&self) -> Result<Vec<Vec<Tensor>>, ggml::Error> {
        let mut stacks = Vec::new();
        for (index, device) in self.devices.iter().enumerate() {
            let of_device = (0..self.n_stacks(index)).map(|stack| {
                let name = format!("staging{index}.{stack}");
                let bytes = self.context.tensor(&name, Type::I8, &[self.stack_bytes[index]]);
                let tensors = std::slice::from_ref(&bytes);
                let buffer = Buffer::allocate(device.buffer_type(), tensors, "staging of experts")?;
                buffer.set_weights();
                let places = self.layers.iter().filter(|l| l.device == index).flat_map(|l| &l.places);
                places
                    .filter(|(_, of, _)| *of == stack)
                    .for_each(|(tensor, _, at)| buffer.place(tensor, *at));
                Ok(bytes)
            });
            stacks.push(of_device.collect::<Result<_, ggml::Error>>()?);
            let tables: Vec<&Table> =
                self.tables.iter().filter(|(at, _)| *at == index).map(|(_, table)| table).collect();
            if !tables.is_empty() {
                let tensors: Vec<Tensor> = tables.iter().map(|table| table.tensor().clone()).collect();
                Buffer::allocate(device.buffer_type(), &tensors, "expert tables")?.set_weights();
                tables.iter().for_each(|table| table.fill());
            }
        }
        Ok(stacks)
    }

    /// Tables of a group, as those that the host has for experts of several groups.
    fn route(&self, name: &str, members: &[u32], n_expert: usize, tables: &mut Vec<Table>) -> GroupRoute {
        let (mut number, mut belongs) = (vec![0i32; n_expert], vec![0f32; n_expert]);
        for (index, expert) in (0..).zip(members) {
            (number[*expert as usize], belongs[*expert as usize]) = (index, 1.0);
        }
        let member = self.context.tensor(&format!("{name}.member"), Type::I32, &[1, n_expert]);
        let mask = self.context.tensor(&format!("{name}.mask"), Type::F32, &[1, n_expert]);
        tables.push(Table::Ints(member.clone(), number));
        tables.push(Table::Floats(mask.clone(), belongs));
        GroupRoute { member, mask }
    }
}

impl Table {
    fn tensor(&self) -> &Tensor {
        match self {
            Table::Ints(tensor, _) | Table::Floats(tensor, _) => tensor,
        }
    }

    fn fill(&self) {
        match self {
            Table::Ints(tensor, values) => tensor.write_values(values),
            Table::Floats(tensor, values) => tensor.write_values(values),
        }
    }
}

/// The groups of gate, up and down; none of dense layers.
fn banks(ffn: &FeedForward) -> Vec<&[ExpertGroup]> {
    match ffn {
        FeedForward::Dense { .. } => Vec::new(),
        FeedForward::Experts { gate, up, down, .. } => {
            [gate, up, down].into_iter().map(|bank| &bank.groups[..]).collect()
        }
    }
}
