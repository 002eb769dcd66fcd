//! One stream of events feeds every output: the terminal, `report.json`, `junit.xml` and the page.
//!
//! A source says what happens, in order: [`Event::Begin`], then for each case [`Event::Case`] and, if the sum of what
//! is known changes, [`Event::Sentence`], at last [`Event::End`]. An output sees each event together with all that is
//! known by then. Neither knows of the other.

use std::io;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::view::{CaseReport, Report};

/// What happens while cases are judged.
#[derive(Clone, Debug)]
pub enum Event {
    Begin {
        title: String,
        /// Cases that are to come, as far as is known.
        planned: usize,
    },
    Case(Box<CaseReport>),
    /// What is proved by now.
    Sentence(String),
    End,
}

/// One output.
pub trait Sink {
    /// `report` is what is known after the event.
    fn receive(&mut self, event: &Event, report: &Report) -> io::Result<()>;
}

/// Adds the events up, and hands them to each output in turn.
pub struct Stream<'a> {
    report: Report,
    start: Instant,
    sinks: Vec<Box<dyn Sink + 'a>>,
}

impl<'a> Stream<'a> {
    /// Outputs that come first are served first: what is printed is on disk by then.
    pub fn new(sinks: Vec<Box<dyn Sink + 'a>>) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH);
        let started_unix_s = started.map_or(0, |elapsed| elapsed.as_secs());
        let sentence = "Nothing is known yet.".into();
        Self {
            report: Report { started_unix_s, sentence, ..Report::default() },
            start: Instant::now(),
            sinks,
        }
    }

    pub fn send(&mut self, event: Event) -> io::Result<()> {
        let report = &mut self.report;
        report.seconds = self.start.elapsed().as_secs_f64();
        match &event {
            Event::Begin { title, planned } => {
                (report.title, report.planned) = (title.clone(), *planned);
            }
            Event::Case(case) => report.cases.push((**case).clone()),
            Event::Sentence(sentence) => report.sentence.clone_from(sentence),
            Event::End => {}
        }
        self.sinks.iter_mut().try_for_each(|sink| sink.receive(&event, report))
    }

    /// All that is known so far.
    pub fn report(&self) -> &Report {
        &self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::CaseView;
    use std::cell::RefCell;

    struct Counter<'a>(&'a RefCell<Vec<(usize, String)>>);

    impl Sink for Counter<'_> {
        fn receive(&mut self, _: &Event, report: &Report) -> io::Result<()> {
            self.0.borrow_mut().push((report.cases.len(), report.sentence.clone()));
            Ok(())
        }
    }

    #[test]
    fn outputs_see_the_sum_of_all_events() {
        let seen = RefCell::default();
        let mut stream = Stream::new(vec![Box::new(Counter(&seen)), Box::new(Counter(&seen))]);
        let case = CaseReport::new(CaseView::new("g", "c"), serde_json::Value::Null);
        stream.send(Event::Begin { title: "t".into(), planned: 1 }).unwrap();
        stream.send(Event::Case(Box::new(case))).unwrap();
        stream.send(Event::Sentence("proved".into())).unwrap();
        stream.send(Event::End).unwrap();
        assert_eq!((stream.report().title.as_str(), stream.report().planned), ("t", 1));
        drop(stream);
        let last = seen.borrow().iter().rev().take(2).cloned().collect::<Vec<_>>();
        assert_eq!(last, vec![(1, "proved".to_owned()); 2]);
        assert_eq!(seen.borrow().len(), 8);
    }
}
