//! Time limits, as schedulers write them.

use super::JobError;

/// More would be a mistake: a year.
const SECONDS_MAX: u64 = 366 * 24 * 3600;

/// Reads `HH:MM:SS` (any number of hours).
pub fn parse(key: &str, text: &str) -> Result<u64, JobError> {
    let fail =
        || JobError::new(format!("{key}: {text:?} is no time such as \"01:30:00\" (hours:minutes:seconds)"));
    let parts: Vec<&str> = text.split(':').collect();
    let digits =
        |part: &&str| (1..=6).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    if parts.len() != 3 || !parts.iter().all(digits) {
        return Err(fail());
    }
    let numbers: Vec<u64> = parts.iter().filter_map(|part| part.parse().ok()).collect();
    match numbers[..] {
        [hours, minutes, seconds] if minutes < 60 && seconds < 60 => {
            Some(hours * 3600 + minutes * 60 + seconds)
                .filter(|&sum| sum > 0 && sum <= SECONDS_MAX)
                .ok_or_else(fail)
        }
        _ => Err(fail()),
    }
}

/// Writes `HH:MM:SS`.
pub fn format(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_as_they_were() {
        for text in ["00:00:01", "01:30:00", "200:00:59"] {
            assert_eq!(format(parse("time", text).unwrap()), text);
        }
        for text in [
            "",
            "10",
            "1:00",
            "1:60:00",
            "0:0:0",
            "-1:00:00",
            "1:00:00\n",
            "99999:00:00",
            "1:00:00:00",
            "a:b:c",
        ] {
            assert!(parse("time", text).is_err(), "{text:?}");
        }
    }
}
