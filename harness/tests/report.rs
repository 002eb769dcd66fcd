//! What people and programs see of a verification: the page in a real browser, `junit.xml` against the format's
//! schemas, `report.json` read back, and `lockstep-harness report`.

#[path = "common/browser.rs"]
mod browser;
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use browser::Browser;
use common::{Run, harness};
use lockstep_harness::report::{
    CaseReport, CaseView, Class, Curves, Report, html, junit, read_report, report_json,
};
use lockstep_record::{LossTerm, Real};
use quick_xml::events::Event;
use serde_json::Value;

/// Five runs: the reference, an equal one, one an ulp off, one cut short, one of another seed.
struct Runs {
    folder: tempfile::TempDir,
}

impl Runs {
    fn new() -> Self {
        let runs = Self { folder: tempfile::tempdir().unwrap() };
        runs.write("golden", &Run::new(1));
        runs.write("equal", &Run::new(3));
        let mut other = Run::new(4);
        other.metrics[2].loss = Real(other.metrics[2].loss.0 * 1.01);
        runs.write("other", &other);
        let cut = runs.write("cut", &Run::new(2)).join("metrics.jsonl");
        let text = std::fs::read_to_string(&cut).unwrap();
        std::fs::write(&cut, &text[..text.len() - 20]).unwrap();
        runs
    }

    fn write(&self, name: &str, run: &Run) -> PathBuf {
        let path = self.folder.path().join(name);
        run.write(&path);
        path
    }

    fn report(&self, names: &[&str], options: &[&str]) -> (i32, String, String) {
        let paths: Vec<String> = names.iter().map(|name| self.path(name)).collect();
        let arguments: Vec<&str> = ["report"]
            .into_iter()
            .chain(paths.iter().map(String::as_str))
            .chain(options.iter().copied())
            .collect();
        harness(&arguments)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn runs_are_shown_beside_the_first() {
    let runs = Runs::new();
    let (code, out, errors) = runs.report(&["golden", "equal", "other", "cut"], &[]);
    assert_eq!(code, 100, "{out}{errors}");
    let row = |name: &str| out.lines().find(|line| line.starts_with(&format!("runs/{name} "))).unwrap();
    assert!(row("golden").contains("reference"));
    assert!(row("equal").contains("passed"));
    assert!(row("other").contains("DIFFERENT") && row("other").contains("step 3, forward, loss"), "{out}");
    assert!(
        row("cut").contains("NOT COMPARED") && row("cut").contains("the last line is cut short"),
        "{out}"
    );
    assert!(
        out.contains("Beside golden: 1 run: as equal to it as was demanded; 1 run: DIFFERENT from it"),
        "{out}"
    );
    let saved = read_report(Path::new(&runs.path("golden/report/report.json"))).unwrap();
    let curves = |name: &str| &saved.views().find(|view| view.name == name).unwrap().curves;
    assert_eq!(curves("equal").divergence, [1.0, 2.0, 3.0, 4.0, 5.0].map(|step| (step, 0.0)));
    assert!(curves("other").divergence[2].1 > 1000.0 && curves("other").divergence[1].1 == 0.0);
    assert_eq!(curves("cut").loss.len(), 4, "what can be read is drawn");
    assert!(curves("golden").divergence.is_empty());
}

#[test]
fn the_exit_code_says_what_was_found() {
    let runs = Runs::new();
    assert_eq!(runs.report(&["golden", "equal"], &[]).0, 0);
    assert_eq!(runs.report(&["golden"], &[]).0, 0);
    assert_eq!(runs.report(&["golden", "cut"], &[]).0, 101);
    assert_eq!(runs.report(&["golden", "other"], &["--rtol", "0.1"]).0, 0);
    let (code, _, errors) = runs.report(&["golden", "nowhere"], &[]);
    assert!(code == 2 && errors.contains("neither a run directory"), "{errors}");
    let (code, _, errors) = runs.report(&["golden", "golden"], &[]);
    assert!(code == 2 && errors.contains("is named twice"), "{errors}");
}

/// A model with several losses has a chart of each beside that of their sum.
#[test]
fn the_terms_of_a_loss_have_charts_of_their_own() {
    let runs = Runs::new();
    for (name, flow) in [("one", 2.0), ("two", 3.0)] {
        let mut run = Run::new(1);
        for line in &mut run.metrics {
            let term = |loss: f64| LossTerm { loss: Real(loss), targets: 96 };
            line.loss_terms = [("ar".into(), term(line.loss.0 / 2.0)), ("fm".into(), term(flow))].into();
        }
        runs.write(name, &run);
    }
    let page = |names: &[&str]| {
        runs.report(names, &[]);
        std::fs::read_to_string(runs.path(names[0]) + "/report/report.html").unwrap()
    };
    let with_terms = page(&["one", "two"]);
    let titles = ["Loss", "Loss: ar", "Loss: fm", "Gradient norm"];
    let places = titles.map(|title| with_terms.find(&format!("<figcaption>{title}</figcaption>")));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
    let saved = read_report(Path::new(&runs.path("one/report/report.json"))).unwrap();
    let flow = |name: &str| &saved.views().find(|view| view.name == name).unwrap().curves.loss_terms["fm"];
    assert_eq!(*flow("two"), [1.0, 2.0, 3.0, 4.0, 5.0].map(|step| (step, 3.0)));
    assert_ne!(flow("one"), flow("two"));
    // The control: one loss has no terms.
    assert!(!page(&["golden", "equal"]).contains("<figcaption>Loss: "));
}

#[test]
fn reports_are_shown_beside_one_another() {
    let runs = Runs::new();
    for (name, others) in [("a", ["golden", "equal"]), ("b", ["golden", "other"])] {
        runs.report(&others, &["--out", &runs.path(name)]);
    }
    let (code, out, errors) = runs.report(&["a", "b/report.json"], &["--out", &runs.path("both")]);
    assert_eq!(code, 100, "{out}{errors}");
    let both = read_report(Path::new(&runs.path("both/report.json"))).unwrap();
    assert_eq!(both.views().filter(|view| view.class == Class::Different).count(), 1);
    assert_eq!(both.cases.len(), 4);
    // Nothing is lost on the way there and back.
    let a = read_report(Path::new(&runs.path("a/report.json"))).unwrap();
    assert_eq!(both.cases[1].facts, a.cases[1].facts);
    assert_eq!(both.cases[1].view.curves, a.cases[1].view.curves);
}

#[test]
fn a_report_that_is_none_is_refused_by_name() {
    let runs = Runs::new();
    let file = runs.folder.path().join("report.json");
    for (text, expected) in [
        ("{}", "missing field `report_version`"),
        ("{\"report_version\":99}", "version 99 of report.json, this program reads 2: update it"),
        ("{\"report_version\":1}", "make the report again"),
        ("[", "is not a report.json"),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, _, errors) = harness(&["report", file.to_str().unwrap()]);
        assert!(code == 101 && errors.contains(expected), "{code} {errors}");
    }
}

#[test]
fn a_run_directory_cannot_lead_the_report_out_of_it() {
    let runs = Runs::new();
    let outside = runs.folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, runs.path("golden/report")).unwrap();
    let (code, _, errors) = runs.report(&["golden", "equal"], &[]);
    assert!(code == 101 && errors.contains("report: a symbolic link, which is refused"), "{code} {errors}");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

/// Every kind of case, and names that are meant to harm.
fn hostile_report() -> Report {
    let names = [
        "a",
        "</script><script>window.pwned=1</script>",
        "\"><img src=x onerror=window.pwned=1>",
        "\u{202e}evil",
        "b&b<!--",
    ];
    let classes = [Class::Golden, Class::Passed, Class::Different, Class::Skipped, Class::CouldNotRun];
    let case = |(name, class): (&str, Class)| {
        let view = CaseView {
            class,
            verdict: class.name().into(),
            ranks: name.into(),
            strategy: name.into(),
            seconds: 1.25,
            problem: (!matches!(class, Class::Golden | Class::Passed))
                .then(|| format!("step 3: {name}\u{0}\u{b}")),
            detail: Some(name.into()),
            run_dir: name.into(),
            curves: Curves { loss: vec![(1.0, 2.0), (2.0, 1.0)], ..Curves::default() },
            ..CaseView::new("a group & <others>", name)
        };
        CaseReport::new(view, Value::Null)
    };
    Report {
        title: "A title </title> & more".into(),
        started_unix_s: 1_767_225_600,
        seconds: 6.0,
        planned: 6,
        sentence: "]]> </testsuites>".into(),
        cases: names.into_iter().zip(classes).map(case).collect(),
    }
}

/// What the strict schemas of the format have in common, in the order in which they want it.
#[test]
fn junit_has_what_readers_expect() {
    let text = junit(&hostile_report()).unwrap();
    let mut reader = quick_xml::Reader::from_str(&text);
    let (mut stack, mut seen): (Vec<String>, Vec<String>) = Default::default();
    loop {
        let event = reader.read_event().unwrap();
        let (start, empty) = match &event {
            Event::Start(start) => (start, false),
            Event::Empty(start) => (start, true),
            Event::End(_) => {
                stack.pop();
                continue;
            }
            Event::Eof => break,
            _ => continue,
        };
        let name = String::from_utf8(start.name().as_ref().to_vec()).unwrap();
        let attributes: Vec<String> = start
            .attributes()
            .map(|attribute| String::from_utf8(attribute.unwrap().key.as_ref().to_vec()).unwrap())
            .collect();
        let parent = stack.last().map_or("", String::as_str);
        let (parents, expected): (&str, &[&str]) = match name.as_str() {
            "testsuites" => ("", &[]),
            "testsuite" => (
                "testsuites",
                &[
                    "package",
                    "id",
                    "name",
                    "timestamp",
                    "hostname",
                    "tests",
                    "failures",
                    "errors",
                    "skipped",
                    "time",
                ],
            ),
            "properties" | "system-out" | "system-err" => ("testsuite", &[]),
            "testcase" => ("testsuite", &["name", "classname", "time"]),
            "failure" | "error" | "skipped" => ("testcase", &["message", "type"]),
            other => panic!("{other} is in no schema"),
        };
        assert_eq!(
            (parent, attributes.iter().map(String::as_str).collect::<Vec<_>>()),
            (parents, expected.to_vec())
        );
        seen.push(name.clone());
        if !empty {
            stack.push(name);
        }
    }
    assert!(stack.is_empty());
    let expected = "testsuites testsuite properties testcase testcase testcase failure testcase skipped testcase error \
                    system-out system-err";
    assert_eq!(seen, expected.split(' ').collect::<Vec<_>>());
    assert!(text.contains(r#"tests="5" failures="1" errors="1" skipped="1" time="6.250""#), "{text}");
    assert!(text.contains(r#"timestamp="2026-01-01T00:00:00""#), "{text}");
}

/// `tests/junit.xsd` is as strict as the schemas in use together, where `xmllint` is there to judge.
#[test]
fn junit_is_valid() {
    if Command::new("xmllint").arg("--version").output().is_err() {
        eprintln!("skipped: junit_is_valid: there is no xmllint");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("junit.xml");
    let valid = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/junit.xsd");
        let output =
            Command::new("xmllint").args(["--noout", "--schema", schema]).arg(&file).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let text = junit(&hostile_report()).unwrap();
    let (is_valid, problem) = valid(&text);
    assert!(is_valid, "{problem}");
    for (good, bad) in [
        ("failures=\"1\"", ""),
        ("timestamp=\"2026", "timestamp=\"26"),
        ("<properties/>", ""),
        ("time=\"1.250\"", "time=\"x\""),
    ] {
        assert!(!valid(&text.replace(good, bad)).0, "without {good} it must not be valid");
    }
}

#[test]
fn the_json_is_read_back_as_it_was() {
    let report = hostile_report();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    std::fs::write(&file, report_json(&report).unwrap()).unwrap();
    let read = read_report(&file).unwrap();
    let views = |report: &Report| report.views().cloned().collect::<Vec<_>>();
    assert_eq!(views(&read), views(&report));
    assert_eq!((&read.title, read.planned), (&report.title, report.planned));
}

/// The text of whatever has the keyboard's focus.
fn focused(browser: &mut Browser) -> String {
    browser.eval("document.activeElement.textContent.trim()").as_str().unwrap().to_owned()
}

#[test]
fn the_page_works_in_a_browser() {
    let Some(mut browser) = Browser::start("the_page_works_in_a_browser") else { return };
    let runs = Runs::new();
    runs.report(&["golden", "equal", "other", "cut"], &[]);
    let page = PathBuf::from(runs.path("golden/report/report.html"));
    browser.resize(1200, 900);
    browser.system_theme("light");
    browser.open(&page);
    assert_eq!(browser.requested().len(), 1, "nothing is loaded but the page: {:?}", browser.requested());

    themes(&mut browser);
    matrix(&mut browser);
    charts(&mut browser);
    narrow(&mut browser);
    assert!(browser.complaints().is_empty(), "{:?}", browser.complaints());
}

fn themes(browser: &mut Browser) {
    const BACK: &str = "getComputedStyle(document.body).backgroundColor";
    const BUTTON: &str = "document.getElementById('theme')";
    let (light, dark) = ("rgb(255, 255, 255)", "rgb(13, 17, 23)");
    browser.screenshot("report-light");
    assert_eq!(browser.eval(BACK), light);
    browser.system_theme("dark");
    assert_eq!(browser.eval(BACK), dark);
    browser.screenshot("report-dark");
    // The button outweighs the system.
    for (theme, back) in [("light", light), ("dark", dark)] {
        assert_eq!(
            browser.eval(&format!("{BUTTON}.click(), {BUTTON}.textContent")),
            format!("Theme: {theme}")
        );
        assert_eq!(browser.eval(BACK), back);
    }
    browser.system_theme("light");
    assert_eq!(browser.eval(BACK), dark);
    assert_eq!(browser.eval(&format!("{BUTTON}.click(), {BUTTON}.textContent")), "Theme: automatic");
    assert_eq!(browser.eval(BACK), light);
    contrast(browser, "light");
    browser.system_theme("dark");
    contrast(browser, "dark");
    browser.system_theme("light");
}

/// Text can be read on what is behind it: the ratio that WCAG's level AA asks for.
fn contrast(browser: &mut Browser, theme: &str) {
    let worst = browser.eval(
        "(() => { const parse = (text) => text.match(/[\\d.]+/g).map(Number);
          const linear = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
          const light = (rgb) => 0.2126 * linear(rgb[0]) + 0.7152 * linear(rgb[1]) + 0.0722 * linear(rgb[2]);
          const back = (node) => { for (; node; node = node.parentElement) { const c = parse(getComputedStyle(node).backgroundColor);
            if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
          const ratio = (node) => { const [a, b] = [light(parse(getComputedStyle(node).color)), light(back(node))];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); };
          const nodes = [...document.querySelectorAll('h1, h2, p, a, td, th, summary, .badge, .head, figcaption, pre, button, .problem')];
          return nodes.map((node) => [ratio(node), node.outerHTML.slice(0, 80)]).sort((a, b) => a[0] - b[0])[0]; })()",
    );
    assert!(worst[0].as_f64().unwrap() >= 4.5, "{theme}: {worst}");
}

fn matrix(browser: &mut Browser) {
    let roles = "['grid', 'row', 'rowheader', 'gridcell'].map((role) => document.querySelectorAll(`[role=${role}]`).length)";
    assert_eq!(browser.eval(roles), serde_json::json!([1, 1, 1, 4]));
    // The theme's button, then the matrix as one stop: at its first red cell.
    browser.eval("document.activeElement.blur()");
    browser.press("Tab");
    browser.press("Tab");
    assert_eq!(focused(browser), "✗ other");
    let outline = "getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(browser.eval(outline), "solid", "the focus can be seen");
    for (key, expected) in [
        ("ArrowLeft", "✓ equal"),
        ("Home", "◆ golden"),
        ("ArrowLeft", "◆ golden"),
        ("End", "! cut"),
        ("ArrowRight", "! cut"),
        ("ArrowUp", "! cut"),
        ("ArrowLeft", "✗ other"),
    ] {
        browser.press(key);
        assert_eq!(focused(browser), expected, "after {key}");
    }
    assert_eq!(browser.eval("document.querySelectorAll('#matrix a[tabindex=\"0\"]').length"), 1);
    browser.press("Enter");
    let first = focused(browser);
    assert!(first.starts_with("First difference: step 3, forward, loss: golden 4.7 (0x"), "{first}");
    let visible = "(() => { const box = document.activeElement.getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight; })()";
    assert_eq!(browser.eval(visible), true);
    browser.screenshot("report-difference");
    browser.press("Escape");
    assert_eq!(focused(browser), "✗ other");
    // A click does the same; a closed case opens.
    browser.eval("document.querySelector('a.tile.passed').click()");
    assert_eq!(browser.eval("document.activeElement.closest('details').open"), true);
    browser.eval("document.querySelector('a.tile.different').click()");
    assert!(focused(browser).starts_with("First difference: step 3"));
}

fn charts(browser: &mut Browser) {
    let titles = "[...document.querySelectorAll('.chart figcaption')].map((caption) => caption.textContent)";
    let expected = ["Loss", "Gradient norm", "Parameter norm", "Divergence from the golden run"];
    assert_eq!(browser.eval(titles), serde_json::json!(expected));
    let curves =
        "[...document.querySelectorAll('.chart')].map((chart) => chart.querySelectorAll('.curve').length)";
    assert_eq!(browser.eval(curves), serde_json::json!([4, 4, 4, 3]));
    let colours = "new Set([...document.querySelector('.chart').querySelectorAll('.curve')].map((curve) => getComputedStyle(curve).stroke)).size";
    assert_eq!(browser.eval(colours), 4, "runs are told apart");
    browser.eval("document.querySelectorAll('.chart')[3].focus()");
    for _ in 0..3 {
        browser.press("ArrowRight");
    }
    let reading = browser.eval("document.activeElement.querySelector('.reading').textContent");
    assert!(reading.as_str().unwrap().starts_with("step 3: equal 0 · other "), "{reading}");
    browser.screenshot("report-chart");
}

fn narrow(browser: &mut Browser) {
    browser.resize(360, 740);
    let width = browser.eval("document.documentElement.scrollWidth");
    assert!(width.as_u64().unwrap() <= 360, "the page is {width} pixels wide");
    browser.screenshot("report-narrow");
}

#[test]
fn names_that_are_meant_to_harm_do_not() {
    let Some(mut browser) = Browser::start("names_that_are_meant_to_harm_do_not") else { return };
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    std::fs::write(&page, html(&hostile_report()).unwrap()).unwrap();
    browser.open(&page);
    assert_eq!(
        browser.eval("[typeof window.pwned, document.images.length, document.scripts.length]"),
        serde_json::json!(["undefined", 0, 2])
    );
    assert_eq!(browser.eval("document.title"), "A title </title> & more");
    assert_eq!(browser.eval("document.querySelectorAll('.tile')[3].textContent"), "– \\u{202e}evil");
    assert_eq!(browser.requested().len(), 1);
    assert!(browser.complaints().is_empty(), "{:?}", browser.complaints());
    // The control: should a name ever break out, the page's policy stops it.
    let broken = std::fs::read_to_string(&page).unwrap().replacen(
        "<main>",
        "<main><script>window.pwned=1</script><img src=x onerror=window.pwned=1>",
        1,
    );
    std::fs::write(&page, broken).unwrap();
    browser.open(&page);
    assert_eq!(browser.eval("typeof window.pwned"), "undefined");
    assert!(!browser.complaints().is_empty(), "the browser must say that it refused");
}
