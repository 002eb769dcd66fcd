//! What a sweep leaves: a table, a configuration and a picture.

use std::fmt::Write;
use std::path::Path;

use minijinja::{Environment, context};

use super::choice::{Choice, Measured};
use super::{Options, STEPS_OF_WARM_UP};

const TEMPLATE: &str = include_str!("tune.svg");

/// One line a setting: median and range of its runs; the chosen one is marked.
pub fn table(measured: &[Measured], choice: Choice) -> String {
    let mut text = format!("  {:<34} {:>12}   range of runs\n", "setting", "tokens/s");
    for (index, line) in measured.iter().enumerate() {
        let Some(spread) = line.spread() else { continue };
        let mark = if index == choice.index() { '*' } else { ' ' };
        let own = if index == 0 { "  as configured" } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{mark} {:<34} {:>12.0}   {:.0} to {:.0}{own}",
            line.setting, spread.median, spread.min, spread.max
        );
    }
    text
}

/// A configuration that extends the ones that were measured with the best setting.
pub fn config(options: &Options, measured: &[Measured], choice: Choice) -> String {
    let mut text = format!(
        "# Written by `lockstep-harness tune`: {} ranks, {} runs of {} steps each, after {STEPS_OF_WARM_UP} of warm-up.\n",
        options.ranks, options.repetitions, options.steps
    );
    for set in &options.sets {
        let _ = writeln!(text, "# Measured with --set {}, which this file does not hold.", one_line(set));
    }
    let comment = table(measured, choice) + &choice.explain(measured);
    comment.lines().for_each(|line| {
        let _ = writeln!(text, "# {}", line.trim_end());
    });
    let names: Vec<String> =
        options.configs.iter().map(|config| quoted(&extended(config, &options.out))).collect();
    let best = measured[choice.index()].setting;
    let _ = writeln!(text, "extends: [{}]", names.join(", "));
    let _ = writeln!(text, "parallel: {{ bucket_mb: {}, overlap: {} }}", best.bucket_mb, best.overlap);
    if best.threads != measured[0].setting.threads {
        let _ = writeln!(text, "run: {{ threads_per_rank: {} }}", best.threads);
    }
    text
}

/// How a file in `out`'s folder names `config`: a neighbour by its name, other files by their whole path, and what is no file
/// (one of the trainer's own) as it is.
fn extended(config: &Path, out: &Path) -> String {
    let folder = |path: &Path| std::fs::canonicalize(path).ok()?.parent().map(Path::to_owned);
    let out_folder = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => std::fs::canonicalize(parent).ok(),
        _ => std::fs::canonicalize(".").ok(),
    };
    let path = match std::fs::canonicalize(config) {
        Ok(path) if folder(config) == out_folder => path.file_name().map(Into::into).unwrap_or(path),
        Ok(path) => path,
        Err(_) => config.to_owned(),
    };
    path.to_string_lossy().into_owned()
}

/// A YAML scalar in double quotes, which are JSON's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// In SVG units, which are pixels at the natural size.
const LEFT: f64 = 240.0;
const RIGHT: f64 = 760.0;
const TOP: f64 = 60.0;
const ROW: f64 = 26.0;

/// Each run as a dot, each median as a line; the axis begins at zero, so that lengths compare.
pub fn picture(measured: &[Measured], choice: Choice) -> Result<String, minijinja::Error> {
    let highest = measured.iter().flat_map(|line| &line.runs).copied().fold(1.0, f64::max);
    let x = |value: f64| ((LEFT + (RIGHT - LEFT) * value / highest) * 10.0).round() / 10.0;
    let rows = measured.iter().enumerate().filter_map(|(index, line)| {
        let spread = line.spread()?;
        Some(context! {
            label => line.setting.to_string(),
            y => TOP + ROW * (index as f64 + 0.5),
            dots => line.runs.iter().map(|&run| x(run)).collect::<Vec<_>>(),
            median => x(spread.median),
            text => format!("{:.0}{}", spread.median, if index == 0 { ", as configured" } else { "" }),
            chosen => index == choice.index(),
        })
    });
    let mut environment = Environment::new();
    environment.add_template("tune.svg", TEMPLATE)?;
    environment.get_template("tune.svg")?.render(context! {
        rows => rows.collect::<Vec<_>>(),
        left => LEFT, right => RIGHT, width => RIGHT + 160.0,
        bottom => TOP + ROW * measured.len() as f64,
        own => measured.first().and_then(Measured::spread).map(|spread| x(spread.median)),
        highest => format!("{highest:.0}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_named_briefly_and_the_trainers_own_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("a b.yaml");
        std::fs::write(&config, "").unwrap();
        assert_eq!(extended(&config, &folder.path().join("out.yaml")), "a b.yaml");
        let elsewhere = std::env::temp_dir().join("out.yaml");
        assert_eq!(Path::new(&extended(&config, &elsewhere)), std::fs::canonicalize(&config).unwrap());
        assert_eq!(extended(Path::new("none/base.yaml"), &elsewhere), "none/base.yaml");
        assert_eq!(quoted("a\"b"), r#""a\"b""#);
    }
}
