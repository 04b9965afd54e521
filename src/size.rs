//! Sizes and times as people read them.

/// A number of bytes in decimal units with about three digits: `512 B`, `14.6 GB`.
pub fn bytes(n: u64) -> String {
    const UNITS: &[&str] = &["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = n as f64;
    let mut unit = 0;
    // 999.95 would be shown as 1000.0.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// As [`bytes`], but no less than `n` when it is read again: what is needed, for those who type it in.
pub fn bytes_at_least(n: u64) -> String {
    let mut shown = n;
    loop {
        let text = bytes(shown);
        if shown == u64::MAX || parse(&text).is_none_or(|read| read >= n) {
            return text;
        }
        shown = shown.saturating_add((n / 20_000).max(1));
    }
}

/// The bytes of a size as people write it: `12G`, `11.5 GB`, `800M`, `512` (bytes) in powers of ten, `11.5GiB` in powers of
/// two; in any case. `None` for anything else.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start().to_ascii_uppercase());
    let (letter, thousand) = match unit.strip_suffix("IB") {
        Some(letter) if !letter.is_empty() => (letter.to_owned(), 1024u64),
        _ => (unit.strip_suffix('B').unwrap_or(&unit).to_owned(), 1000),
    };
    let power = ["", "K", "M", "G", "T"].iter().position(|known| *known == letter)?;
    let factor = thousand.pow(power as u32);
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    (value < u64::MAX as f64).then_some(value as u64)
}

/// A number of seconds: `0.42 s`, `38 s`, `2 min 05 s`.
pub fn seconds(s: f64) -> String {
    if s < 9.995 {
        format!("{s:.2} s")
    } else if s < 99.5 {
        format!("{s:.0} s")
    } else {
        let whole = s.round() as u64;
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.00 kB");
        assert_eq!(bytes(999_999), "1.00 MB");
        assert_eq!(bytes(14_600_000_000), "14.6 GB");
        assert_eq!(bytes(u64::MAX), "18.4 EB");
    }

    #[test]
    fn what_is_needed_is_not_rounded_down() {
        assert_eq!((bytes(414_840_000), bytes_at_least(414_840_000)), ("414.8 MB".into(), "414.9 MB".into()));
        assert_eq!((bytes_at_least(512), bytes_at_least(1000)), ("512 B".into(), "1.00 kB".into()));
        assert_eq!(bytes_at_least(u64::MAX), "18.4 EB");
        for n in (1..29).map(|power| 3u64.pow(power) + u64::from(power)) {
            let read = parse(&bytes_at_least(n)).expect("a size");
            assert!(read >= n && read - n <= n / 100, "{n}: {read}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("12G", 12_000_000_000),
            ("12g", 12_000_000_000),
            (" 11.5 GB ", 11_500_000_000),
            ("1.5GiB", 1_610_612_736),
            ("800M", 800_000_000),
            ("800MiB", 838_860_800),
            ("3k", 3000),
            ("512", 512),
            ("512B", 512),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in ["", "G", "12X", "-3G", "1e9", "12 G B", "1.2.3G", "12iB", "999999999999T", "..G", "12GG"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn seconds_become_minutes() {
        assert_eq!(seconds(0.4242), "0.42 s");
        assert_eq!(seconds(38.2), "38 s");
        assert_eq!(seconds(125.0), "2 min 05 s");
    }
}
