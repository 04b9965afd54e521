//! Which tensor types exist, and how many bytes a row of each takes.
//!
//! A row is cut into blocks of `block_len` weights; a block is stored in `block_bytes` bytes. Types that are not
//! quantized have blocks of one weight. The numbers are ggml's (`ggml.h`, `ggml-common.h`); a test holds them against
//! the linked ggml.

use std::fmt;

/// Declares the enum and everything that is looked up by type, from one table.
macro_rules! tensor_types {
    ($($variant:ident = $id:literal, $block_len:literal weights in $block_bytes:literal bytes, $kind:ident, $doc:literal;)*) => {
        /// The storage type of a tensor. The discriminants are ggml's type ids, as GGUF stores them.
        #[allow(non_camel_case_types, reason = "the field's spelling of these names")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum TensorType {
            $(#[doc = $doc] $variant = $id,)*
        }

        impl TensorType {
            /// Every type, in the order of the ids.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The type with this id in GGUF files; `None` for ids that were never given out or were withdrawn.
            pub const fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The name as llama.cpp's tools print it, in upper case: `Q4_K`, `F32`, `IQ4_XS`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)*
                }
            }

            /// Weights per block; 1 where the type is not quantized.
            pub const fn block_len(self) -> usize {
                match self {
                    $(Self::$variant => $block_len,)*
                }
            }

            /// Bytes per block.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(Self::$variant => $block_bytes,)*
                }
            }

            /// Whether the weights of a block share scales, so that single weights have no place of their own.
            pub const fn is_quantized(self) -> bool {
                match self {
                    $(Self::$variant => tensor_types!(@ $kind),)*
                }
            }
        }
    };
    (@ plain) => { false };
    (@ blocks) => { true };
}

tensor_types! {
    F32 = 0, 1 weights in 4 bytes, plain, "IEEE single precision.";
    F16 = 1, 1 weights in 2 bytes, plain, "IEEE half precision.";
    Q4_0 = 2, 32 weights in 18 bytes, blocks, "4 bits, one scale per 32 weights.";
    Q4_1 = 3, 32 weights in 20 bytes, blocks, "4 bits, scale and minimum per 32 weights.";
    Q5_0 = 6, 32 weights in 22 bytes, blocks, "5 bits, one scale per 32 weights.";
    Q5_1 = 7, 32 weights in 24 bytes, blocks, "5 bits, scale and minimum per 32 weights.";
    Q8_0 = 8, 32 weights in 34 bytes, blocks, "8 bits, one scale per 32 weights.";
    Q8_1 = 9, 32 weights in 36 bytes, blocks, "8 bits with a sum, for activations only.";
    Q2_K = 10, 256 weights in 84 bytes, blocks, "2 bits, 4-bit scales and minima per 16 weights.";
    Q3_K = 11, 256 weights in 110 bytes, blocks, "3 bits, 6-bit scales per 16 weights.";
    Q4_K = 12, 256 weights in 144 bytes, blocks, "4 bits, 6-bit scales and minima per 32 weights.";
    Q5_K = 13, 256 weights in 176 bytes, blocks, "5 bits, 6-bit scales and minima per 32 weights.";
    Q6_K = 14, 256 weights in 210 bytes, blocks, "6 bits, 8-bit scales per 16 weights.";
    Q8_K = 15, 256 weights in 292 bytes, blocks, "8 bits with sums, for activations only.";
    IQ2_XXS = 16, 256 weights in 66 bytes, blocks, "2.06 bits per weight, codebook.";
    IQ2_XS = 17, 256 weights in 74 bytes, blocks, "2.31 bits per weight, codebook.";
    IQ3_XXS = 18, 256 weights in 98 bytes, blocks, "3.06 bits per weight, codebook.";
    IQ1_S = 19, 256 weights in 50 bytes, blocks, "1.56 bits per weight, codebook.";
    IQ4_NL = 20, 32 weights in 18 bytes, blocks, "4 bits on a non-linear grid, one scale per 32 weights.";
    IQ3_S = 21, 256 weights in 110 bytes, blocks, "3.44 bits per weight, codebook.";
    IQ2_S = 22, 256 weights in 82 bytes, blocks, "2.56 bits per weight, codebook.";
    IQ4_XS = 23, 256 weights in 136 bytes, blocks, "4 bits on a non-linear grid, 6-bit scales per 32 weights.";
    I8 = 24, 1 weights in 1 bytes, plain, "Signed 8-bit integers.";
    I16 = 25, 1 weights in 2 bytes, plain, "Signed 16-bit integers.";
    I32 = 26, 1 weights in 4 bytes, plain, "Signed 32-bit integers.";
    I64 = 27, 1 weights in 8 bytes, plain, "Signed 64-bit integers.";
    F64 = 28, 1 weights in 8 bytes, plain, "IEEE double precision.";
    IQ1_M = 29, 256 weights in 56 bytes, blocks, "1.75 bits per weight, codebook.";
    BF16 = 30, 1 weights in 2 bytes, plain, "The upper half of IEEE single precision.";
    TQ1_0 = 34, 256 weights in 54 bytes, blocks, "Ternary, five weights to a byte.";
    TQ2_0 = 35, 256 weights in 66 bytes, blocks, "Ternary, four weights to a byte.";
    MXFP4 = 39, 32 weights in 17 bytes, blocks, "OCP microscaling: 4-bit floats, one 8-bit exponent per 32 weights.";
    NVFP4 = 40, 64 weights in 36 bytes, blocks, "4-bit floats, one 8-bit float scale per 16 weights.";
    Q1_0 = 41, 128 weights in 18 bytes, blocks, "Signs, one scale per 128 weights.";
    Q2_0 = 42, 64 weights in 18 bytes, blocks, "2 bits, one scale per 64 weights.";
}

impl TensorType {
    /// The id that GGUF files and ggml use.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The type with this name, in any case: `Q4_K`, `q4_K` and `q4_k` are the same.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// Bytes that `n` weights in a row take; `None` where `n` is not a whole number of blocks or the size overflows.
    pub const fn row_bytes(self, n: u64) -> Option<u64> {
        if !n.is_multiple_of(self.block_len() as u64) {
            return None;
        }
        (n / self.block_len() as u64).checked_mul(self.block_bytes() as u64)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_lead_back_to_the_type() {
        for &ty in TensorType::ALL {
            assert_eq!(TensorType::from_id(ty.id()), Some(ty));
            assert_eq!(TensorType::from_name(ty.name()), Some(ty));
            assert_eq!(TensorType::from_name(&ty.name().to_lowercase()), Some(ty));
        }
        assert!(TensorType::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn withdrawn_and_unknown_ids_and_names_are_none() {
        for id in [4, 5, 31, 32, 33, 36, 37, 38, 43, 255, u32::MAX] {
            assert_eq!(TensorType::from_id(id), None, "{id}");
        }
        for name in ["", "Q4", "Q4_K_M", "Q4_2", " Q4_K", "f32\0"] {
            assert_eq!(TensorType::from_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn rows_are_whole_blocks_and_their_size_does_not_wrap() {
        assert_eq!(TensorType::Q4_K.row_bytes(0), Some(0));
        assert_eq!(TensorType::Q4_K.row_bytes(4096), Some(2304));
        assert_eq!(TensorType::Q4_K.row_bytes(4095), None);
        assert_eq!(TensorType::Q8_0.row_bytes(32), Some(34));
        assert_eq!(TensorType::F32.row_bytes(3), Some(12));
        assert_eq!(TensorType::F32.row_bytes(u64::MAX / 4), Some(u64::MAX / 4 * 4));
        assert_eq!(TensorType::F32.row_bytes(u64::MAX / 4 + 1), None);
        assert_eq!(TensorType::Q8_0.row_bytes(!31), None);
    }

    #[test]
    fn types_print_their_name_and_keep_a_given_width() {
        assert_eq!(format!("{:>6}|", TensorType::Q4_K), "  Q4_K|");
    }
}
