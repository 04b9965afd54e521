//! `general.file_type`: which recipe most tensors of a file follow, and its names.
//!
//! Numbers are those of llama.cpp's `llama_ftype` (include/llama.h). Names are llama-quantize's, which
//! people type and which end up in file names.

use quants::TensorType;

/// A recipe for a whole file. Most tensors get [`FileType::default_type`]; which tensors differ is the
/// converter's business.
#[allow(missing_docs, non_camel_case_types)] // the names are llama-quantize's own
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum FileType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q8_0 = 7,
    Q5_0 = 8,
    Q5_1 = 9,
    Q2_K = 10,
    Q3_K_S = 11,
    Q3_K_M = 12,
    Q3_K_L = 13,
    Q4_K_S = 14,
    Q4_K_M = 15,
    Q5_K_S = 16,
    Q5_K_M = 17,
    Q6_K = 18,
    IQ2_XXS = 19,
    IQ2_XS = 20,
    Q2_K_S = 21,
    IQ3_XS = 22,
    IQ3_XXS = 23,
    IQ1_S = 24,
    IQ4_NL = 25,
    IQ3_S = 26,
    IQ3_M = 27,
    IQ2_S = 28,
    IQ2_M = 29,
    IQ4_XS = 30,
    IQ1_M = 31,
    BF16 = 32,
    TQ1_0 = 36,
    TQ2_0 = 37,
    MXFP4_MOE = 38,
    Q1_0 = 40,
    Q2_0 = 41,
}

/// Every file type with its name and the type most of its tensors have, in the order of their numbers.
const TABLE: &[(FileType, &str, TensorType)] = &[
    (FileType::F32, "F32", TensorType::F32),
    (FileType::F16, "F16", TensorType::F16),
    (FileType::Q4_0, "Q4_0", TensorType::Q4_0),
    (FileType::Q4_1, "Q4_1", TensorType::Q4_1),
    (FileType::Q8_0, "Q8_0", TensorType::Q8_0),
    (FileType::Q5_0, "Q5_0", TensorType::Q5_0),
    (FileType::Q5_1, "Q5_1", TensorType::Q5_1),
    (FileType::Q2_K, "Q2_K", TensorType::Q2_K),
    (FileType::Q3_K_S, "Q3_K_S", TensorType::Q3_K),
    (FileType::Q3_K_M, "Q3_K_M", TensorType::Q3_K),
    (FileType::Q3_K_L, "Q3_K_L", TensorType::Q3_K),
    (FileType::Q4_K_S, "Q4_K_S", TensorType::Q4_K),
    (FileType::Q4_K_M, "Q4_K_M", TensorType::Q4_K),
    (FileType::Q5_K_S, "Q5_K_S", TensorType::Q5_K),
    (FileType::Q5_K_M, "Q5_K_M", TensorType::Q5_K),
    (FileType::Q6_K, "Q6_K", TensorType::Q6_K),
    (FileType::IQ2_XXS, "IQ2_XXS", TensorType::IQ2_XXS),
    (FileType::IQ2_XS, "IQ2_XS", TensorType::IQ2_XS),
    (FileType::Q2_K_S, "Q2_K_S", TensorType::Q2_K),
    (FileType::IQ3_XS, "IQ3_XS", TensorType::IQ3_S),
    (FileType::IQ3_XXS, "IQ3_XXS", TensorType::IQ3_XXS),
    (FileType::IQ1_S, "IQ1_S", TensorType::IQ1_S),
    (FileType::IQ4_NL, "IQ4_NL", TensorType::IQ4_NL),
    (FileType::IQ3_S, "IQ3_S", TensorType::IQ3_S),
    (FileType::IQ3_M, "IQ3_M", TensorType::IQ3_S),
    (FileType::IQ2_S, "IQ2_S", TensorType::IQ2_XS),
    (FileType::IQ2_M, "IQ2_M", TensorType::IQ2_S),
    (FileType::IQ4_XS, "IQ4_XS", TensorType::IQ4_XS),
    (FileType::IQ1_M, "IQ1_M", TensorType::IQ1_M),
    (FileType::BF16, "BF16", TensorType::BF16),
    (FileType::TQ1_0, "TQ1_0", TensorType::TQ1_0),
    (FileType::TQ2_0, "TQ2_0", TensorType::TQ2_0),
    (FileType::MXFP4_MOE, "MXFP4_MOE", TensorType::MXFP4),
    (FileType::Q1_0, "Q1_0", TensorType::Q1_0),
    (FileType::Q2_0, "Q2_0", TensorType::Q2_0),
];

/// Shorter names that llama-quantize also takes.
const ALIASES: &[(&str, FileType)] =
    &[("Q3_K", FileType::Q3_K_M), ("Q4_K", FileType::Q4_K_M), ("Q5_K", FileType::Q5_K_M)];

impl FileType {
    /// Every file type, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = FileType> {
        TABLE.iter().map(|row| row.0)
    }

    /// The number stored under `general.file_type`.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The file type of a number, `None` where the number is not a known one.
    pub fn from_id(id: u32) -> Option<Self> {
        TABLE.iter().map(|row| row.0).find(|t| t.id() == id)
    }

    /// llama-quantize's name: `Q4_K_M`. It holds no `-`, so file names can be split at one.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The file type of a name in any case or of a number; `q4_k` is `Q4_K_M`, and so is `15`, as in llama-quantize.
    pub fn from_name(name: &str) -> Option<Self> {
        let by_name = TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0);
        by_name
            .or_else(|| ALIASES.iter().find(|a| a.0.eq_ignore_ascii_case(name)).map(|a| a.1))
            .or_else(|| name.parse().ok().and_then(FileType::from_id))
    }

    /// The type that most tensors of such a file have.
    pub fn default_type(self) -> TensorType {
        self.row().2
    }

    fn row(self) -> &'static (FileType, &'static str, TensorType) {
        TABLE.iter().find(|row| row.0 == self).expect("every file type is in the table")
    }
}

impl std::fmt::Display for FileType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_case_and_aliases_are_understood() {
        assert_eq!(FileType::from_name("q4_k"), Some(FileType::Q4_K_M));
        assert_eq!(FileType::from_name("Q5_K"), Some(FileType::Q5_K_M));
        assert_eq!(FileType::from_name("q4_K_s"), Some(FileType::Q4_K_S));
        assert_eq!(FileType::from_name("bf16"), Some(FileType::BF16));
        assert_eq!(FileType::from_name("15"), Some(FileType::Q4_K_M));
        assert_eq!(FileType::from_name("q4"), None);
        assert_eq!(FileType::from_name("39"), None);
        assert_eq!(FileType::from_name(""), None);
    }

    #[test]
    fn numbers_and_names_go_both_ways() {
        for t in FileType::all() {
            assert_eq!(FileType::from_id(t.id()), Some(t));
            assert_eq!(FileType::from_name(t.name()), Some(t));
            assert!(!t.name().contains('-'));
        }
        assert_eq!(FileType::from_id(4), None);
        assert_eq!(FileType::Q4_K_M.id(), 15);
        assert_eq!(FileType::Q8_0.id(), 7);
        assert_eq!(FileType::BF16.id(), 32);
    }

    #[test]
    fn default_types_are_those_of_llama_quantize() {
        assert_eq!(FileType::Q4_K_M.default_type(), TensorType::Q4_K);
        assert_eq!(FileType::Q5_K_S.default_type(), TensorType::Q5_K);
        assert_eq!(FileType::IQ3_XS.default_type(), TensorType::IQ3_S);
        assert_eq!(FileType::F16.default_type(), TensorType::F16);
    }
}
