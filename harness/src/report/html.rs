//! The page: one file that loads nothing, and works without scripts, too.
//!
//! What comes from a run is text or numbers, and is escaped; a content security policy lets the page's own script run
//! and no other, should an escape ever be missing.

use minijinja::{Environment, Value, context};
use serde_json::json;

use super::chart::{Chart, Series};
use super::curves::Quantity;
use super::view::{CaseView, Class, Report};

const TEMPLATE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
/// SHA-256 of [`SCRIPT`], which the page's policy lets run; a test below says what it must be.
const SCRIPT_HASH: &str = "sha256-vBHXQ8dfQzTohTKl+gPMmEjZUEggpU0HoGjw0SiQzvc=";
/// A group of at most so many candidates has a colour for each; in a larger one the verdict decides.
const COLOURS: usize = 8;

/// Renders the page.
pub fn html(report: &Report) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.add_template("page.html", TEMPLATE)?;
    let ids = Ids::of(report);
    let names = report.groups();
    let groups: Vec<Group> = names.iter().map(|name| Group::of(report, name, &ids)).collect();
    let data = json!({
        "plot": Chart::PLOT,
        "charts": groups.iter().map(|group| &group.data).collect::<Vec<_>>(),
    });
    environment.get_template("page.html")?.render(context! {
        title => report.title,
        sentence => report.sentence,
        seconds => format!("{:.0}", report.seconds),
        started_unix_s => report.started_unix_s,
        done => report.cases.len(),
        planned => report.planned,
        counts => counts(report),
        groups => groups.into_iter().map(|group| group.view).collect::<Vec<_>>(),
        style => Value::from_safe_string(STYLE.into()),
        script => Value::from_safe_string(SCRIPT.into()),
        script_hash => SCRIPT_HASH,
        data => Value::from_safe_string(inert(&data.to_string())),
    })
}

/// JSON that cannot end the element that it stands in.
fn inert(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

fn counts(report: &Report) -> Vec<Value> {
    let mut classes: Vec<(Class, usize)> = Vec::new();
    for view in report.views() {
        match classes.iter_mut().find(|(class, _)| *class == view.class) {
            Some((_, number)) => *number += 1,
            None => classes.push((view.class, 1)),
        }
    }
    let label = |class: Class| class.name().replace('-', " ");
    classes
        .into_iter()
        .map(|(class, number)| context! { class => class.name(), number, label => label(class) })
        .collect()
}

/// The cases' names as parts of links: `g-ddp-3`. Equal ones are numbered.
struct Ids(Vec<String>);

impl Ids {
    fn of(report: &Report) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
        let mut used = std::collections::HashSet::new();
        let ids = report.views().enumerate().map(|(index, view)| {
            let id: String = format!("{}-{}", view.group, view.name).chars().take(160).map(plain).collect();
            // No other element's id has a dot after a number.
            if used.insert(id.clone()) { id } else { format!("{index}.{id}") }
        });
        Self(ids.collect())
    }
}

/// What the template needs of a group, and what the script needs of its charts.
struct Group {
    view: Value,
    data: serde_json::Value,
}

impl Group {
    fn of(report: &Report, name: &str, ids: &Ids) -> Self {
        let members: Vec<(&CaseView, &String)> =
            report.views().zip(&ids.0).filter(|(view, _)| view.group == name).collect();
        let candidates = members.iter().filter(|(view, _)| view.class != Class::Golden).count();
        let by_colour = candidates <= COLOURS;
        let class = |index: usize, view: &CaseView| match (view.class, by_colour) {
            (Class::Golden, _) => "golden".to_owned(),
            (_, true) => format!("colour-{index}"),
            (Class::Passed, false) => "passed".into(),
            (_, false) => "different".into(),
        };
        // Colours count candidates only.
        let mut next = 0;
        let classes: Vec<String> = members
            .iter()
            .map(|(view, _)| {
                let class = class(next, view);
                next += usize::from(view.class != Class::Golden);
                class
            })
            .collect();
        let quantities = Quantity::of(members.iter().map(|(view, _)| &view.curves));
        let charts = quantities.iter().filter_map(|quantity| draw(quantity, &members, &classes));
        let (charts, data): (Vec<Value>, Vec<serde_json::Value>) = charts.unzip();
        let key = members.iter().zip(&classes).filter(|((view, _), _)| !view.curves.loss.is_empty());
        let key = key.map(|((view, _), class)| context! { name => view.name, class });
        let view = context! {
            name,
            charts,
            by_colour,
            key => key.collect::<Vec<_>>(),
            cells => members.iter().map(|(view, id)| cell(view, id)).collect::<Vec<_>>(),
        };
        Self { view, data: data.into() }
    }
}

/// A chart for the template, and its numbers for the script.
fn draw(
    quantity: &Quantity,
    members: &[(&CaseView, &String)],
    classes: &[String],
) -> Option<(Value, serde_json::Value)> {
    let series = members.iter().zip(classes).map(|((view, _), class)| Series {
        points: view.curves.of(quantity),
        class: class.clone(),
        is_reference: view.class == Class::Golden,
    });
    let series: Vec<Series> = series.collect();
    let chart = Chart::draw(quantity, &series)?;
    let names: Vec<&str> = members.iter().map(|(view, _)| view.name.as_str()).collect();
    let data = json!({
        "steps": [chart.first_step, chart.last_step],
        "series": names.iter().zip(&series).map(|(name, series)| {
            json!({"name": name, "points": series.points})
        }).collect::<Vec<_>>(),
    });
    let view = context! {
        title => quantity.title(),
        unit => quantity.unit(),
        svg => Value::from_safe_string(chart.svg),
    };
    Some((view, data))
}

fn cell(view: &CaseView, id: &str) -> Value {
    context! {
        id,
        name => view.name,
        ranks => view.ranks,
        strategy => view.strategy,
        expectation => view.expectation,
        verdict => view.verdict,
        class => view.class.name(),
        symbol => view.class.symbol(),
        is_bad => view.class.is_bad(),
        distance => view.distance.as_deref().unwrap_or("—"),
        seconds => format!("{:.1}", view.seconds),
        problem => view.problem,
        detail => view.detail,
        run_dir => view.run_dir,
        launches => Value::from_serialize(&view.launches),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{CaseReport, Curves};
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    /// RFC 4648.
    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let encode = |three: &[u8]| {
            let bits =
                three.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
            let digit = |index: usize| match index <= three.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * index) & 63) as usize]),
                false => '=',
            };
            (0..4).map(digit).collect::<String>()
        };
        bytes.chunks(3).map(encode).collect()
    }

    #[test]
    fn the_policy_lets_the_pages_own_script_run() {
        assert_eq!(base64(b"lockstep!!"), "bG9ja3N0ZXAhIQ==");
        assert_eq!(SCRIPT_HASH, format!("sha256-{}", base64(&Sha256::digest(SCRIPT))), "page.js has changed");
    }

    fn page(view: CaseView, title: &str) -> String {
        let report = Report {
            title: title.into(),
            cases: vec![CaseReport { view, facts: serde_json::Value::Null }],
            ..Report::default()
        };
        html(&report).unwrap()
    }

    /// What a page of harmless names consists of, as far as markup goes.
    fn tags(page: &str) -> Vec<&str> {
        page.split('<').skip(1).map(|tag| tag.split([' ', '>', '\n']).next().unwrap_or_default()).collect()
    }

    fn hostile(name: &str) -> CaseView {
        CaseView {
            class: Class::Different,
            problem: Some(name.into()),
            detail: Some(name.into()),
            run_dir: name.into(),
            strategy: name.into(),
            curves: Curves {
                loss: vec![(1.0, 2.0), (2.0, 3.0)],
                loss_terms: [(name.into(), vec![(1.0, 1.0)])].into(),
                ..Curves::default()
            },
            ..CaseView::new(name, name)
        }
    }

    #[test]
    fn names_cannot_break_out() {
        let usual = page(hostile("a"), "a");
        for name in [
            "</script><script>alert(1)</script>",
            "\"><img src=x onerror=alert(1)>",
            "<!--",
            "]]>",
            "'\"`&lt;",
            "{{ 1234*1234 }}",
        ] {
            let page = page(hostile(name), name);
            assert_eq!(tags(&page), tags(&usual), "{name}");
            assert!(!page.contains("1522756"), "names are no templates");
        }
    }

    proptest! {
        #[test]
        fn no_name_breaks_out(name in r#"[<>"'&/=a-z!\-{}% ]{1,40}"#) {
            let (hostile_page, usual) = (page(hostile(&name), &name), page(hostile("a"), "a"));
            prop_assert_eq!(tags(&hostile_page), tags(&usual));
        }
    }

    #[test]
    fn links_are_told_apart() {
        let case = |name: &str| CaseReport::new(CaseView::new("g", name), serde_json::Value::Null);
        let cases = ["a b", "a-b", "a/b"].map(case).to_vec();
        let ids = Ids::of(&Report { cases, ..Report::default() }).0;
        assert_eq!(ids, ["g-a-b", "1.g-a-b", "2.g-a-b"]);
    }
}
