//! YAML text as a tree that knows its lines. It accepts the part of YAML that a configuration needs and
//! refuses the rest (anchors, aliases, tags, several documents, complex keys) by name, so that no input is
//! expensive or ambiguous. Parsing is iterative and its depth is bounded before anything recursive sees the
//! tree.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::error::Fault;

/// Mappings and lists inside one another; the schema itself needs three.
const DEPTH_MAX: usize = 32;
/// Values in a document: it keeps the search for duplicate keys short.
const VALUES_MAX: usize = 10_000;

/// A value and the line (from 1) that it starts on.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub line: usize,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Scalar(Scalar),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A value that has not been given a type yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalar {
    pub text: String,
    pub style: Style,
}

/// Only a plain scalar can be a number, a boolean or null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Quoted,
}

/// One `key: value` of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub line: usize,
    pub value: Node,
}

/// Parses one YAML document. Empty text is a null.
pub fn parse(text: &str) -> Result<Node, Fault> {
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| not_yaml(text, &error))?;
        builder.accept(event, span)?;
    }
    Ok(builder.root.unwrap_or_else(|| null(1)))
}

fn not_yaml(text: &str, error: &ScanError) -> Fault {
    let line = error.marker().line().max(1);
    // The scanner reads ahead on a line and has a limit of its own.
    if error.info().contains("recursion limit") {
        return too_deep(line);
    }
    let remedy = match text.lines().nth(line - 1) {
        Some(source) if source.contains("${") => "inside { } and [ ], put values with ${...} between quotes",
        Some(source) if source.trim_start().starts_with('\t') => "indent with spaces",
        _ => "check the indentation, the colons and the brackets there",
    };
    Fault::new(line, format!("not YAML: {}", error.info()), remedy)
}

fn too_deep(line: usize) -> Fault {
    let message = format!("nested more than {DEPTH_MAX} levels deep");
    Fault::new(line, message, "a configuration has sections and keys, nothing deeper")
}

fn null(line: usize) -> Node {
    Node { line, content: Content::Scalar(Scalar { text: String::new(), style: Style::Plain }) }
}

/// A collection whose end has not been seen.
enum Open {
    Sequence { line: usize, items: Vec<Node> },
    Mapping { line: usize, entries: Vec<Entry>, key: Option<(String, usize)> },
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    values: usize,
}

impl Builder {
    fn accept(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let line = span.start.line().max(1);
        self.values += 1;
        if self.values > VALUES_MAX {
            let message = format!("more than {VALUES_MAX} values");
            return Err(Fault::new(line, message, "check that this file is a configuration"));
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_extras(line, anchor, tag.is_some())?;
                let style = if style == ScalarStyle::Plain { Style::Plain } else { Style::Quoted };
                self.add(Node { line, content: Content::Scalar(Scalar { text: text.into_owned(), style }) })
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_extras(line, anchor, tag.is_some())?;
                self.push(line, Open::Sequence { line, items: Vec::new() })
            }
            Event::MappingStart(anchor, tag) => {
                refuse_extras(line, anchor, tag.is_some())?;
                self.push(line, Open::Mapping { line, entries: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::Sequence { line, items }) => {
                    self.add(Node { line, content: Content::Sequence(items) })
                }
                Some(Open::Mapping { line, entries, .. }) => {
                    self.add(Node { line, content: Content::Mapping(entries) })
                }
                None => Ok(()),
            },
            Event::Alias(_) => Err(anchors_refused(line)),
            Event::DocumentStart(_) if self.root.is_some() => Err(Fault::new(
                line,
                "a second YAML document begins here",
                "keep one document a file; `extends: [a.yaml, b.yaml]` combines files",
            )),
            Event::Nothing | Event::StreamStart | Event::StreamEnd => Ok(()),
            Event::DocumentStart(_) | Event::DocumentEnd => Ok(()),
        }
    }

    fn push(&mut self, line: usize, collection: Open) -> Result<(), Fault> {
        if self.open.len() == DEPTH_MAX {
            return Err(too_deep(line));
        }
        if let Some(Open::Mapping { key: None, .. }) = self.open.last() {
            return Err(complex_key(line));
        }
        self.open.push(collection);
        Ok(())
    }

    /// A finished value goes into the collection that is open, or is the document.
    fn add(&mut self, node: Node) -> Result<(), Fault> {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::Sequence { items, .. }) => items.push(node),
            Some(Open::Mapping { entries, key, .. }) => match key.take() {
                Some((key, line)) => entries.push(Entry { key, line, value: node }),
                None => *key = Some(mapping_key(entries, node)?),
            },
        }
        Ok(())
    }
}

fn mapping_key(entries: &[Entry], node: Node) -> Result<(String, usize), Fault> {
    let Content::Scalar(scalar) = node.content else { return Err(complex_key(node.line)) };
    if let Some(first) = entries.iter().find(|entry| entry.key == scalar.text) {
        let message = format!("the key `{}` stands twice, first on line {}", shown(&scalar.text), first.line);
        return Err(Fault::new(node.line, message, "keep one of the two"));
    }
    Ok((scalar.text, node.line))
}

fn complex_key(line: usize) -> Fault {
    Fault::new(
        line,
        "a mapping or a list is used as a key",
        "keys are plain words; quote values that begin with { or [",
    )
}

fn anchors_refused(line: usize) -> Fault {
    Fault::new(
        line,
        "YAML anchors (&) and aliases (*) are not supported",
        "write the value out, or use `extends:`",
    )
}

fn refuse_extras(line: usize, anchor: usize, tagged: bool) -> Result<(), Fault> {
    if anchor != 0 {
        return Err(anchors_refused(line));
    }
    if tagged {
        return Err(Fault::new(
            line,
            "YAML tags (!) are not supported",
            "remove the tag, or quote the value",
        ));
    }
    Ok(())
}

/// Text from a file as a message shows it: on one line, without control characters, and not too long.
pub fn shown(text: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    let mut short: String = text.chars().take(CHARACTERS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(CHARACTERS_MAX).is_some() {
        short.push_str("...");
    }
    short.replace("\\\"", "\"").replace("\\'", "'")
}
