//! Lists of leads, read row by row: a JSON array, JSON lines, or CSV with a header row. Nothing but one row is held, of any list.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::rc::Rc;

use serde::de::{DeserializeSeed, Deserializer as _, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The request that has the leads of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeadsIn {
    /// The request that creates the run: they follow its fields.
    Create,
    /// A later one.
    Later,
}

/// The maximum length of a lead, in bytes.
pub const LEAD_BYTES_MAX: usize = 16 * 1024;

/// Bytes that are read at most without the end of a row, or of what stands before the leads.
const UNENDED_BYTES_MAX: usize = 1024 * 1024;

/// The format of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON array of objects.
    Json,
    /// An object a line.
    Ndjson,
    /// RFC 4180, with a header row; also with semicolons, as spreadsheets write it where the comma is in numbers.
    Csv,
}

impl Format {
    /// The format of a content type.
    pub fn of(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/json" => Some(Self::Json),
            "application/x-ndjson" | "application/jsonl" | "application/ndjson" => Some(Self::Ndjson),
            "text/csv" => Some(Self::Csv),
            _ => None,
        }
    }
}

/// A row of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The line where it begins or, in a JSON array, ends; from 1.
    pub line: u64,
    /// The lead, or the mistake in it.
    pub lead: Result<Map<String, Value>, String>,
}

/// The consumer of rows has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

type TakeResult = Result<(), Stopped>;

/// Reads a list.
///
/// # Errors
/// [`Stopped`], if `take` returned it.
pub fn read(format: Format, from: impl Read, mut take: impl FnMut(Row) -> TakeResult) -> TakeResult {
    match format {
        Format::Csv => csv(from, &mut take),
        Format::Ndjson => lines(from, &mut take),
        Format::Json => {
            let (reader, position) = LineCounter::new(BufReader::new(without_bom(from)));
            let mut json = serde_json::Deserializer::from_reader(reader);
            let mut stopped = false;
            let leads = Leads { position: position.clone(), take: &mut take, stopped: &mut stopped };
            let read = leads.deserialize(&mut json).and_then(|()| json.end());
            report_end(read, stopped, &position, &mut take)
        }
    }
}

/// Reads an object whose field `leads` is a list of them. The fields before it are handed over first.
///
/// # Errors
/// [`Stopped`], if `take` returned it.
pub fn read_with_head(
    from: impl Read,
    mut head: impl FnMut(Map<String, Value>, LeadsIn) -> TakeResult,
    mut take: impl FnMut(Row) -> TakeResult,
) -> TakeResult {
    let (reader, position) = LineCounter::new(BufReader::new(without_bom(from)));
    let mut json = serde_json::Deserializer::from_reader(reader);
    let mut stopped = false;
    let whole = RunWithLeads { position: position.clone(), head: &mut head, take: &mut take, stopped: &mut stopped };
    let read = json.deserialize_map(whole).and_then(|()| json.end());
    report_end(read, stopped, &position, &mut take)
}

/// Hands over the mistake at which the list ended, if there is one.
fn report_end(
    read: serde_json::Result<()>,
    stopped: bool,
    position: &ReadPosition,
    take: &mut impl FnMut(Row) -> TakeResult,
) -> TakeResult {
    match read {
        _ if stopped => Err(Stopped),
        Ok(()) => Ok(()),
        Err(error) => {
            let line = if error.line() > 0 { error.line() as u64 } else { position.line.get() };
            take(Row { line, lead: Err(format!("not JSON: {error}")) })
        }
    }
}

/// The position up to which a list is read.
struct ReadPosition {
    line: Cell<u64>,
    /// Bytes since a row ended.
    unended: Cell<usize>,
}

impl ReadPosition {
    fn end_row(&self) {
        self.unended.set(0);
    }
}

/// A reader that counts lines, and fails where a row does not end.
struct LineCounter<R> {
    from: R,
    position: Rc<ReadPosition>,
}

impl<R: Read> LineCounter<R> {
    fn new(from: R) -> (Self, Rc<ReadPosition>) {
        let position = Rc::new(ReadPosition { line: Cell::new(1), unended: Cell::new(0) });
        (Self { from, position: position.clone() }, position)
    }
}

impl<R: Read> Read for LineCounter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let position = &self.position;
        if position.unended.get() > UNENDED_BYTES_MAX {
            let why = format!("no end of a row within {UNENDED_BYTES_MAX} bytes; is a quote or a bracket left open?");
            return Err(std::io::Error::other(why));
        }
        let read = self.from.read(buffer)?;
        let ends = buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
        position.line.set(position.line.get() + ends);
        position.unended.set(position.unended.get() + read);
        Ok(read)
    }
}

/// The text of a list, without the byte order mark that some editors put before it.
fn without_bom(mut from: impl Read) -> impl Read {
    let (mut first, mut held) = ([0; 3], 0);
    // An error comes again with the next read.
    while held < first.len()
        && let Ok(read @ 1..) = from.read(&mut first[held..])
    {
        held += read;
    }
    let kept = if first == [0xef, 0xbb, 0xbf] { vec![] } else { first[..held].to_vec() };
    Cursor::new(kept).chain(from)
}

fn parse_lead(value: Value) -> Result<Map<String, Value>, String> {
    let Value::Object(lead) = value else { return Err("a lead must be an object".to_owned()) };
    let length = Value::Object(lead.clone()).to_string().len();
    if length > LEAD_BYTES_MAX { Err(too_long()) } else { Ok(lead) }
}

fn too_long() -> String {
    format!("a lead must not be longer than {LEAD_BYTES_MAX} bytes")
}

struct Leads<'t, T> {
    position: Rc<ReadPosition>,
    take: &'t mut T,
    stopped: &'t mut bool,
}

impl<'de, T: FnMut(Row) -> TakeResult> DeserializeSeed<'de> for Leads<'_, T> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de, T: FnMut(Row) -> TakeResult> Visitor<'de> for Leads<'_, T> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of leads")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.position.end_row();
        while let Some(value) = list.next_element::<Value>()? {
            self.position.end_row();
            if (self.take)(Row { line: self.position.line.get(), lead: parse_lead(value) }).is_err() {
                *self.stopped = true;
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

struct RunWithLeads<'t, H, T> {
    position: Rc<ReadPosition>,
    head: &'t mut H,
    take: &'t mut T,
    stopped: &'t mut bool,
}

impl<'de, H, T> Visitor<'de> for RunWithLeads<'_, H, T>
where
    H: FnMut(Map<String, Value>, LeadsIn) -> TakeResult,
    T: FnMut(Row) -> TakeResult,
{
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a run")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut fields = Map::new();
        let stop = |stopped: &mut bool| {
            *stopped = true;
            A::Error::custom("stopped")
        };
        while let Some(key) = map.next_key::<String>()? {
            if key != "leads" {
                fields.insert(key, map.next_value()?);
                continue;
            }
            (self.head)(std::mem::take(&mut fields), LeadsIn::Create).map_err(|Stopped| stop(self.stopped))?;
            map.next_value_seed(Leads {
                position: self.position.clone(),
                take: &mut *self.take,
                stopped: &mut *self.stopped,
            })?;
            if let Some(late) = map.next_key::<String>()? {
                map.next_value::<IgnoredAny>()?;
                return Err(A::Error::custom(format!("leads must be the last field; {late} stands after it")));
            }
            return Ok(());
        }
        (self.head)(fields, LeadsIn::Later).map_err(|Stopped| stop(self.stopped))
    }
}

fn lines(from: impl Read, take: &mut impl FnMut(Row) -> TakeResult) -> TakeResult {
    let (mut from, mut line, mut number) = (BufReader::new(without_bom(from)), Vec::new(), 0);
    loop {
        line.clear();
        number += 1;
        let mut one = (&mut from).take(LEAD_BYTES_MAX as u64 + 2);
        match one.read_until(b'\n', &mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return take(Row { line: number, lead: Err(format!("failed to read the list: {error}")) }),
        }
        if line.last() != Some(&b'\n') && line.len() > LEAD_BYTES_MAX {
            take(Row { line: number, lead: Err(too_long()) })?;
            let mut rest = Vec::new();
            // The rest of it, piece by piece.
            while (&mut from).take(LEAD_BYTES_MAX as u64).read_until(b'\n', &mut rest).is_ok_and(|read| read > 0) {
                if rest.last() == Some(&b'\n') {
                    break;
                }
                rest.clear();
            }
            continue;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let lead =
            serde_json::from_slice::<Value>(&line).map_err(|error| format!("not JSON: {error}")).and_then(parse_lead);
        take(Row { line: number, lead })?;
    }
}

fn csv(from: impl Read, take: &mut impl FnMut(Row) -> TakeResult) -> TakeResult {
    let (mut header, mut from) = (Vec::new(), BufReader::new(from));
    // An error comes again with the next read.
    let _ = (&mut from).take(LEAD_BYTES_MAX as u64).read_until(b'\n', &mut header);
    let delimiter = if header.contains(&b';') && !header.contains(&b',') { b';' } else { b',' };
    let (from, position) = LineCounter::new(Cursor::new(header).chain(from));
    // A carriage return before it is trimmed with the field. Of CRLF the reader would count the line too late.
    let line_feed = ::csv::Terminator::Any(b'\n');
    let mut csv = ::csv::ReaderBuilder::new();
    let mut reader = csv.flexible(true).delimiter(delimiter).terminator(line_feed).from_reader(from);
    let names: Vec<String> = match reader.headers() {
        Ok(names) => names.iter().map(|name| name.trim().to_owned()).collect(),
        Err(error) => return take(Row { line: 1, lead: Err(format!("the header row cannot be read: {error}")) }),
    };
    let mut seen = std::collections::BTreeSet::new();
    if let Some(name) = names.iter().find(|name| name.is_empty() || !seen.insert(name.as_str())) {
        let why =
            if name.is_empty() { "a column has no name".to_owned() } else { format!("two columns are called {name}") };
        return take(Row { line: 1, lead: Err(why) });
    }
    let mut record = ::csv::ByteRecord::new();
    loop {
        let line = reader.position().line();
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return take(Row { line, lead: Err(format!("failed to read the list: {error}")) }),
        }
        position.end_row();
        let line = record.position().map_or(line, ::csv::Position::line);
        if record.as_slice().trim_ascii().is_empty() && record.len() == 1 {
            continue;
        }
        take(Row { line, lead: csv_lead(&names, &record) })?;
    }
}

fn csv_lead(names: &[String], record: &::csv::ByteRecord) -> Result<Map<String, Value>, String> {
    if record.len() != names.len() {
        return Err(format!("{} fields under {} columns", record.len(), names.len()));
    }
    if record.as_slice().len() > LEAD_BYTES_MAX {
        return Err(too_long());
    }
    let field = |(name, bytes): (&String, &[u8])| {
        let text = std::str::from_utf8(bytes).map_err(|_| format!("{name} is not UTF-8"))?;
        Ok((name.clone(), Value::from(text.trim())))
    };
    names.iter().zip(record.iter()).map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(format: Format, text: &[u8]) -> Vec<(u64, String)> {
        let mut rows = vec![];
        let taken = read(format, text, |row| {
            rows.push((row.line, row.lead.map_or_else(|why| why, |lead| Value::Object(lead).to_string())));
            Ok(())
        });
        assert_eq!(taken, Ok(()));
        rows
    }

    fn texts(rows: &[(u64, &str)]) -> Vec<(u64, String)> {
        rows.iter().map(|(line, text)| (*line, (*text).to_owned())).collect()
    }

    #[test]
    fn csv_rows_have_their_lines() {
        let list = b"\xef\xbb\xbfnumber, name\r\n+15550001101,\"Anna, \"\"A\"\"\"\r\n+15550001102\r\n+15550001103,\"two\nlines\"\r\n+15550001104,\xff\r\n\r\n+15550001105,e\r\n";
        let rows = all(Format::Csv, list);
        assert_eq!(
            rows,
            texts(&[
                (2, r#"{"number":"+15550001101","name":"Anna, \"A\""}"#),
                (3, "1 fields under 2 columns"),
                (4, r#"{"number":"+15550001103","name":"two\nlines"}"#),
                (6, "name is not UTF-8"),
                (8, r#"{"number":"+15550001105","name":"e"}"#),
            ])
        );
        assert_eq!(all(Format::Csv, b"a;b\n1,5;2\n"), texts(&[(2, r#"{"a":"1,5","b":"2"}"#)]));
        assert_eq!(all(Format::Csv, b"a,a\n1,2\n"), texts(&[(1, "two columns are called a")]));
        assert_eq!(all(Format::Csv, b""), []);
    }

    #[test]
    fn json_lines_have_their_lines_however_wrong_the_others_are() {
        let long = format!("{{\"a\":\"{}\"}}\n", "x".repeat(3 * LEAD_BYTES_MAX));
        let list = format!("{{\"a\":1}}\n\n[1]\n{{\"a\":\n{long}{{\"a\":2}}");
        let rows = all(Format::Ndjson, list.as_bytes());
        assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<_>>(), [1, 3, 4, 5, 6]);
        assert_eq!((rows[0].1.as_str(), rows[4].1.as_str()), (r#"{"a":1}"#, r#"{"a":2}"#));
        assert!(
            rows[1].1.contains("must be an object") && rows[2].1.contains("not JSON") && rows[3].1.contains("longer")
        );
    }

    #[test]
    fn a_json_list_is_read_lead_by_lead_up_to_what_is_broken() {
        let rows = all(Format::Json, b"[{\"a\":1},\n{\"a\":2}\n, 3, {\"a\":");
        assert_eq!(rows[..2], texts(&[(1, r#"{"a":1}"#), (2, r#"{"a":2}"#)]));
        assert!(rows[2].1.contains("must be an object") && rows[3].1.contains("not JSON"), "{rows:?}");
        assert_eq!(rows.len(), 4);
        assert_eq!(read(Format::Json, &b"[{},{}]"[..], |_| Err(Stopped)), Err(Stopped));
        assert!(all(Format::Json, b"{}")[0].1.contains("not JSON"));
    }

    #[test]
    fn a_row_without_an_end_is_not_held() {
        let endless = |first: &'static str| first.as_bytes().chain(std::io::repeat(b'1').take(1 << 30));
        let mut told = vec![];
        let mut take = |row: Row| {
            told.push(row.lead.unwrap_err());
            Ok(())
        };
        for (format, first) in [(Format::Csv, "a,b\n1,\""), (Format::Csv, "\"a"), (Format::Json, "[{\"a\":\"")] {
            assert_eq!(read(format, endless(first), &mut take), Ok(()));
        }
        let _ = read_with_head(endless("{\"name\":\""), |_, _| Ok(()), &mut take);
        assert!(told.len() == 4 && told.iter().all(|why| why.contains("left open")), "{told:?}");
    }

    #[test]
    fn a_byte_order_mark_is_left_out() {
        for (format, list) in [(Format::Json, "\u{feff}[{\"a\":1}]"), (Format::Ndjson, "\u{feff}{\"a\":1}\n")] {
            assert_eq!(all(format, list.as_bytes()), texts(&[(1, r#"{"a":1}"#)]));
        }
        assert_eq!(all(Format::Ndjson, b""), []);
    }

    #[test]
    fn a_run_with_its_leads_hands_over_its_fields_first() {
        let read = |text: &str| {
            let told = std::cell::RefCell::new(vec![]);
            let _ = read_with_head(
                text.as_bytes(),
                |head, leads_in| {
                    told.borrow_mut().push(format!("{} {leads_in:?}", Value::Object(head)));
                    Ok(())
                },
                |row| {
                    told.borrow_mut().push(row.lead.map_or_else(|why| why, |lead| Value::Object(lead).to_string()));
                    Ok(())
                },
            );
            told.into_inner()
        };
        assert_eq!(read(r#"{"a":1,"leads":[{"b":2}]}"#), [r#"{"a":1} Create"#, r#"{"b":2}"#]);
        assert_eq!(read(r#"{"a":1}"#), [r#"{"a":1} Later"#]);
        assert!(read(r#"{"leads":[],"a":1}"#)[1].contains("leads must be the last field"));
        assert!(read("[]")[0].contains("not JSON"));
    }
}
