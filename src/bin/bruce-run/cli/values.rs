//! Values of flags, as text.

use quants::TensorType;
use runtime::StreamReaders;
use runtime::tokenizer::TokenId;

/// A list such as `128,512` or `1-4`, `1-9+2`, `64-512*2`, as llama-bench takes them.
///
/// # Errors
/// A message for the user.
pub fn int_list(text: &str) -> Result<Vec<u32>, String> {
    let mut list = Vec::new();
    for part in text.split(',') {
        push_range(part.trim(), &mut list)?;
        if list.len() > 4096 {
            return Err("more than 4096 values".to_owned());
        }
    }
    Ok(list)
}

fn push_range(part: &str, list: &mut Vec<u32>) -> Result<(), String> {
    let number = |text: &str| {
        text.parse::<u32>().map_err(|_| format!("\"{part}\" is neither a number nor a range such as 1-8*2"))
    };
    let Some((first, rest)) = part.split_once('-') else {
        list.push(number(part)?);
        return Ok(());
    };
    let (last, step, factor) = match (rest.split_once('+'), rest.split_once('*')) {
        (Some((last, step)), _) => (number(last)?, number(step)?, 1),
        (None, Some((last, factor))) => (number(last)?, 0, number(factor)?),
        (None, None) => (number(rest)?, 1, 1),
    };
    let mut value = number(first)?;
    while value <= last {
        list.push(value);
        let next = value.checked_mul(factor).and_then(|v| v.checked_add(step)).unwrap_or(u32::MAX);
        if next <= value {
            return Err(format!("\"{part}\" never reaches its end"));
        }
        if next == u32::MAX || list.len() > 4096 {
            break;
        }
        value = next;
    }
    Ok(())
}

/// A pair such as `512,128`.
///
/// # Errors
/// A message for the user.
pub fn int_pair(text: &str) -> Result<(u32, u32), String> {
    let pair = text.split_once(',').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    pair.ok_or_else(|| "expected two numbers, such as 512,128".to_owned())
}

/// Who reads experts: `auto`, `threads`, `threads:4`, `io_uring:8`.
///
/// # Errors
/// A message for the user.
pub fn readers(text: &str) -> Result<StreamReaders, String> {
    let wrong = || "expected auto, threads, threads:N or io_uring:N".to_owned();
    let (who, n) = text.split_once(':').unwrap_or((text, ""));
    let n = || n.parse().ok().filter(|n| (1..=1024).contains(n)).ok_or_else(wrong);
    match (who, text.len() == who.len()) {
        ("auto", true) => Ok(StreamReaders::Auto),
        ("threads", true) => Ok(StreamReaders::THREADS),
        ("threads", false) => n().map(StreamReaders::Threads),
        ("io_uring", false) => n().map(StreamReaders::Uring),
        _ => Err(wrong()),
    }
}

/// A number that can be computed with.
///
/// # Errors
/// A message for the user.
pub fn finite(text: &str) -> Result<f32, String> {
    text.parse::<f32>().ok().filter(|number| number.is_finite()).ok_or_else(|| "expected a number".to_owned())
}

/// A number of bytes, such as `8G`, `7500M`, `1.5GiB` (binary units) or `8GB` (decimal ones).
///
/// # Errors
/// A message for the user.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || "expected a size such as 8G or 7500M".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1 << 40,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        // Nobody has so few bytes to spare: the unit was forgotten.
        if unit.is_empty() && (1..1 << 20).contains(&whole) {
            return Err(format!("expected a size with its unit, such as {whole}G or {whole}M"));
        }
        return whole.checked_mul(factor).ok_or_else(wrong);
    }
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
    if bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// Types that the KV cache can have.
const CACHE_TYPES: [TensorType; 9] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::IQ4_NL,
    TensorType::Q5_0,
    TensorType::Q5_1,
];

/// A type for the KV cache, in any case.
///
/// # Errors
/// A message that lists the valid ones.
pub fn cache_type(text: &str) -> Result<TensorType, String> {
    let found = CACHE_TYPES.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        let names: Vec<String> = CACHE_TYPES.iter().map(|ty| ty.name().to_ascii_lowercase()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// How many chunks of a text to read: a number, or -1 for all.
///
/// # Errors
/// A message for the user.
pub fn n_chunks(text: &str) -> Result<i64, String> {
    match text.parse::<i64>() {
        Ok(0) | Err(_) => Err("expected 1 or more, or -1 for all".to_owned()),
        Ok(n) => Ok(n),
    }
}

/// How many tokens an answer has at most; -1 and -2 are ends of other kinds.
///
/// # Errors
/// A message for the user.
pub fn n_predict(text: &str) -> Result<i64, String> {
    match text.parse::<i64>() {
        Ok(n) if n >= -2 => Ok(n),
        _ => Err("expected a number of tokens, -1 or -2".to_owned()),
    }
}

/// A change of one token's logit: `15043+1`, `15043-1`, `2-inf`.
///
/// # Errors
/// A message for the user.
pub fn logit_bias(text: &str) -> Result<(TokenId, f32), String> {
    let parse = || {
        let at = text.find(['+', '-'])?;
        let (id, bias) = text.split_at(at);
        let bias: f32 = bias.parse().ok().filter(|bias: &f32| !bias.is_nan())?;
        Some((id.trim().parse().ok()?, bias))
    };
    parse().ok_or_else(|| "expected TOKEN_ID(+/-)BIAS, such as 15043-1 or 15043-inf".to_owned())
}

/// A seed: a number, or -1 for a different one each time.
///
/// # Errors
/// A message for the user.
pub fn seed(text: &str) -> Result<Option<u32>, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(None),
        // llama.cpp's own "random" is the largest 32-bit number.
        Ok(n) => match u32::try_from(n) {
            Ok(u32::MAX) => Ok(None),
            Ok(n) => Ok(Some(n)),
            Err(_) => Err("expected a number from 0 to 4294967294, or -1 for a random one".to_owned()),
        },
        Err(_) => Err("expected a number, or -1 for a random one".to_owned()),
    }
}

/// Text with the escapes `\n \r \t \' \" \\ \xHH` resolved; anything else after a backslash stays as it is. Bytes that
/// `\xHH` writes and that are no UTF-8 become U+FFFD.
pub fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let (written, n_read) = match rest {
            [b'n', ..] => (b'\n', 1),
            [b'r', ..] => (b'\r', 1),
            [b't', ..] => (b'\t', 1),
            [quote @ (b'\'' | b'"' | b'\\'), ..] => (*quote, 1),
            [b'x', high, low, ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, 3),
                _ => (b'\\', 0),
            },
            _ => (b'\\', 0),
        };
        out.push(written);
        rest = &rest[n_read..];
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|d| d as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_have_a_name_and_a_number() {
        assert_eq!(readers("auto"), Ok(StreamReaders::Auto));
        assert_eq!(readers("threads"), Ok(StreamReaders::THREADS));
        assert_eq!(readers("threads:2"), Ok(StreamReaders::Threads(2)));
        assert_eq!(readers("io_uring:16"), Ok(StreamReaders::Uring(16)));
        for text in
            ["", "io_uring", "auto:1", "threads:", "threads:0", "io_uring:-1", "pread:4", "io_uring:9999"]
        {
            assert!(readers(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("8G"), Ok(8 << 30));
        assert_eq!(size("7500m"), Ok(7500 << 20));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("14.6GB"), Ok(14_600_000_000));
        assert_eq!(size("1048576"), Ok(1 << 20));
        assert_eq!(size("0"), Ok(0));
        for text in [
            "",
            "G",
            "-1",
            "8 G",
            "1.2.3G",
            "8X",
            "18446744073709551615K",
            "1e30",
            "inf",
            "99999999999999999999",
            "12",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lists_and_ranges() {
        assert_eq!(int_list("512"), Ok(vec![512]));
        assert_eq!(int_list("1,2, 8"), Ok(vec![1, 2, 8]));
        assert_eq!(int_list("1-4"), Ok(vec![1, 2, 3, 4]));
        assert_eq!(int_list("1-9+4,20"), Ok(vec![1, 5, 9, 20]));
        assert_eq!(int_list("64-512*2"), Ok(vec![64, 128, 256, 512]));
        assert_eq!(int_list("8-4"), Ok(vec![]));
        for bad in ["", "x", "1-", "-1", "1-8*1", "1-8+0", "0-8*2", "1-4294967295", "1,,2"] {
            assert!(int_list(bad).is_err(), "{bad}");
        }
        assert_eq!(int_pair("512,128"), Ok((512, 128)));
        assert!(int_pair("512").is_err());
    }

    #[test]
    fn biases_are_signed() {
        assert_eq!(logit_bias("15043+1"), Ok((15043, 1.0)));
        assert_eq!(logit_bias("15043-1.5"), Ok((15043, -1.5)));
        assert_eq!(logit_bias("2-inf"), Ok((2, f32::NEG_INFINITY)));
        for bad in ["", "5", "+1", "5+", "5+nan", "x-1"] {
            assert!(logit_bias(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn minus_one_is_a_random_seed() {
        assert_eq!(seed("-1"), Ok(None));
        assert_eq!(seed("4294967295"), Ok(None));
        assert_eq!(seed("42"), Ok(Some(42)));
        assert!(seed("-2").is_err() && seed("4294967296").is_err() && seed("x").is_err());
    }

    #[test]
    fn escapes_are_resolved() {
        assert_eq!(unescape(r#"a\nb\t\\n\'\"\r"#), "a\nb\t\\n'\"\r");
        assert_eq!(unescape(r"\x41\xc3\xa9"), "Aé");
        assert_eq!(unescape(r"\xff"), "\u{fffd}");
        assert_eq!(unescape(r"\x4 \q \"), r"\x4 \q \");
        assert_eq!(unescape(r"\xe"), r"\xe");
    }

    #[test]
    fn cache_types_have_any_case() {
        assert_eq!(cache_type("q8_0"), Ok(TensorType::Q8_0));
        assert_eq!(cache_type("F16"), Ok(TensorType::F16));
        assert!(cache_type("q4_k").is_err_and(|e| e.contains("q5_1")));
    }
}
