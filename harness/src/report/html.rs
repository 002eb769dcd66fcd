//! The page: one file, no scripts, nothing loaded from elsewhere.

use minijinja::{Environment, Value, context};

use super::cell::{Cell, Outcome, Report};
use super::comparison::comparison_text;
use super::curves::chart;

const TEMPLATE: &str = include_str!("page.html");

/// Renders the page. Everything that comes from a run is escaped.
pub fn html(report: &Report) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.add_template("page.html", TEMPLATE)?;
    let mut names: Vec<&str> = report.cells.iter().map(|cell| cell.group.as_str()).collect();
    names.dedup();
    let groups: Vec<Value> = names.into_iter().map(|name| group(report, name)).collect();
    environment.get_template("page.html")?.render(context! {
        title => report.title,
        sentence => report.sentence,
        seconds => format!("{:.0}", report.seconds),
        started_unix_s => report.started_unix_s,
        done => report.cells.len(),
        planned => report.planned,
        counts => counts(report),
        groups,
    })
}

fn counts(report: &Report) -> Vec<Value> {
    let mut classes: Vec<(&str, usize)> = Vec::new();
    for cell in &report.cells {
        let class = class(&cell.outcome);
        match classes.iter_mut().find(|(name, _)| *name == class) {
            Some((_, number)) => *number += 1,
            None => classes.push((class, 1)),
        }
    }
    let label = |class: &str| class.replace('-', " ");
    classes.into_iter().map(|(class, number)| context! { class, number, label => label(class) }).collect()
}

fn group(report: &Report, name: &str) -> Value {
    let cells: Vec<&Cell> = report.cells.iter().filter(|cell| cell.group == name).collect();
    let candidates = cells.iter().filter(|cell| cell.outcome == Outcome::Passed).count();
    context! {
        name,
        chart => chart(&cells).map(Value::from_safe_string),
        candidates,
        cells => cells.iter().map(|cell| view(cell)).collect::<Vec<_>>(),
    }
}

fn class(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Golden => "golden",
        Outcome::Passed => "passed",
        Outcome::Different => "different",
        Outcome::Skipped { .. } => "skipped",
        Outcome::CouldNotRun { .. } => "could-not-run",
    }
}

fn view(cell: &Cell) -> Value {
    let launches = cell.launches.iter().map(|launch| {
        let (stdout, stderr) = (launch.stdout.display().to_string(), launch.stderr.display().to_string());
        context! { command => shell_words(&launch.argv), ended => launch.ended, stdout, stderr }
    });
    context! {
        id => format!("{}-{}", cell.group, cell.name),
        name => cell.name,
        ranks => cell.ranks,
        strategy => cell.strategy,
        expectation => cell.expectation(),
        verdict => cell.outcome.to_string(),
        class => class(&cell.outcome),
        ulps => cell.distance().unwrap_or_else(|| "—".into()),
        seconds => format!("{:.1}", cell.seconds),
        problem => cell.problem(),
        comparison => cell.comparison.as_ref().map(comparison_text),
        run_dir => cell.run_dir.display().to_string(),
        launches => launches.collect::<Vec<_>>(),
    }
}

/// The command as one could paste it into a shell.
fn shell_words(argv: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    let quote = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    argv.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        let argv = ["a b", "it's", "--x=1", ""].map(str::to_owned);
        assert_eq!(shell_words(&argv), r"'a b' 'it'\''s' --x=1 ''");
    }
}
