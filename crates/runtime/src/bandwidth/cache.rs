//! How much the processor's caches hold.

/// Bytes of the first processor's last level of cache; `None` where the system doesn't tell.
pub fn last_level_bytes() -> Option<u64> {
    let indices = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = indices.filter_map(|index| std::fs::read_to_string(index.ok()?.path().join("size")).ok());
    sizes.filter_map(|size| parse(&size)).max()
}

/// Bytes, of a size as Linux writes it: `491520K`.
fn parse(size: &str) -> Option<u64> {
    let size = size.trim();
    let digits = size.trim_end_matches(char::is_alphabetic);
    let unit = match &size[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse("491520K\n"), Some(480 << 20));
        assert_eq!(parse("32M"), Some(32 << 20));
        assert_eq!(parse("64"), Some(64));
        assert_eq!(parse("a lot"), None);
        assert_eq!(parse("99999999999999999999G"), None);
    }
}
