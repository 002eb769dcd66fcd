//! Quantities as people write them.

/// `3.2 GiB`, `64 MiB`, `100 bytes`.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) if bytes.is_multiple_of(size) || bytes >= 100 * size => {
            format!("{} {unit}", bytes / size)
        }
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / size as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::bytes_text;

    #[test]
    fn sizes_as_people_write_them() {
        let sizes = [100, 1536, 64 << 20, (3 << 30) + (205 << 20), 200 << 30];
        assert_eq!(sizes.map(bytes_text), ["100 bytes", "1.5 KiB", "64 MiB", "3.2 GiB", "200 GiB"]);
    }
}
