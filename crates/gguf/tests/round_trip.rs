//! Whatever is written is read back: any metadata, any tensors, written in pieces in any order.

mod support;

use gguf::{Array, Layout, Metadata, Overwrite, TensorSpec, Value, Writer};
use proptest::collection::vec;
use proptest::prelude::*;
use quants::TensorType;
use support::open;

fn value() -> impl Strategy<Value = Value> {
    let text = || "[a-z▁ü\n\0]{0,12}";
    // Only strings that are not UTF-8 come back as bytes.
    let raw = || {
        vec(any::<u8>(), 0..8).prop_map(|mut bytes| {
            bytes.push(0xff);
            bytes
        })
    };
    macro_rules! number {
        ($($ty:ty),*) => { prop_oneof![
            $(any::<$ty>().prop_map(Value::from), vec(any::<$ty>(), 0..5).prop_map(Value::from)),*
        ] };
    }
    prop_oneof![
        number!(u8, i8, u16, i16, u32, i32, u64, i64, bool, f32, f64),
        text().prop_map(Value::from),
        vec(text(), 0..5).prop_map(Value::from),
        raw().prop_map(Value::Bytes),
        vec(raw(), 1..4).prop_map(|strings| Array::Bytes(strings).into()),
    ]
}

fn metadata() -> impl Strategy<Value = Metadata> {
    vec(("[a-z.]{1,16}", value()), 0..12).prop_map(|entries| {
        let mut metadata = Metadata::new();
        entries.into_iter().for_each(|(key, value)| metadata.set(&key, value));
        metadata
    })
}

fn tensors() -> impl Strategy<Value = Vec<TensorSpec>> {
    let ty = proptest::sample::select(TensorType::ALL);
    vec((ty, 1u64..3, vec(1u64..4, 0..4)), 0..8).prop_map(|tensors| {
        let spec = |(i, (ty, blocks, mut ne)): (usize, (TensorType, u64, Vec<u64>))| {
            ne.insert(0, blocks * ty.block_len() as u64);
            ne.truncate(4);
            TensorSpec { name: format!("t{i}"), ne, ty }
        };
        tensors.into_iter().enumerate().map(spec).collect()
    })
}

/// A byte that tells where it belongs.
fn byte(tensor: usize, at: u64) -> u8 {
    (tensor as u64 * 31 + at * 7 + 1) as u8
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn what_is_written_is_read(
        metadata in metadata(),
        specs in tensors(),
        alignment in proptest::sample::select(vec![1u32, 8, 32, 64, 4096]),
        piece in 1u64..200,
        backwards: bool,
    ) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("model.gguf");
        let layout = Layout::new(&metadata, &specs, alignment).expect("a possible layout");
        let (header, total) = (layout.header().to_vec(), layout.total_size());
        let ranges: Vec<_> = (0..specs.len()).map(|i| layout.tensor_range(i)).collect();
        let writer = Writer::create(&path, layout, Overwrite::Refuse).expect("a writable folder");
        let mut pieces = Vec::new();
        for (tensor, range) in ranges.iter().enumerate() {
            let size = range.end - range.start;
            pieces.extend((0..size).step_by(piece as usize).map(|at| (tensor, at, (at + piece).min(size))));
        }
        if backwards {
            pieces.reverse();
        }
        for (tensor, start, end) in pieces {
            let bytes: Vec<u8> = (start..end).map(|at| byte(tensor, at)).collect();
            writer.write_at(tensor, start, &bytes).expect("room");
        }
        prop_assert_eq!(writer.finish().expect("a complete file"), total);

        let gguf = open(&path);
        prop_assert_eq!(gguf.file_size(), total);
        prop_assert_eq!(gguf.alignment(), alignment);
        prop_assert!(gguf.warnings().is_empty());
        let mut expected = metadata.clone();
        if alignment != 32 {
            expected.set("general.alignment", alignment);
        }
        // By their text: a NaN is not equal to itself, and all else is shown exactly.
        prop_assert_eq!(format!("{:?}", gguf.metadata().iter().collect::<Vec<_>>()),
                        format!("{:?}", expected.iter().collect::<Vec<_>>()));
        prop_assert_eq!(gguf.tensors().len(), specs.len());
        for (index, (tensor, spec)) in gguf.tensors().iter().zip(&specs).enumerate() {
            prop_assert_eq!((&tensor.name, &tensor.ne, tensor.ty), (&spec.name, &spec.ne, spec.ty));
            prop_assert_eq!(tensor.offset..tensor.offset + tensor.size, ranges[index].clone());
            prop_assert_eq!(tensor.offset % u64::from(alignment), 0);
            prop_assert!(gguf.data(tensor).iter().enumerate().all(|(at, b)| *b == byte(index, at as u64)));
        }
        let again = Layout::new(gguf.metadata(), &specs, alignment).expect("as before");
        prop_assert_eq!(again.header(), header);
    }
}
