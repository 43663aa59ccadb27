//! An event as one line of JSON, written straight into the line.
//!
//! The subscriber's own formatter builds the same object through a serializer, for writers it does not
//! know, and that costs more than the rest of a manifest's answer. Invariant: whatever a field holds, a
//! line is one object and its control characters are escaped.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::log::Lines;

/// Writes events, with their fields at the top; spans are not written.
pub(super) struct JsonLines(pub(super) Arc<Lines>);

/// What a thread keeps from one line to the next.
#[derive(Default)]
struct Scratch {
    line: String,
    /// The second of the last line, since 1970, and its time without a fraction.
    second: Option<(u64, String)>,
    /// Where the last line came from; most come from one place.
    place: Option<Place>,
}

/// What lines from one place in the code have in common, as it is written.
struct Place {
    callsite: Identifier,
    /// From behind the time to behind the target.
    head: String,
    /// The name of each field, with all that is before it and up to the quote of a text.
    names: Vec<String>,
}

impl Place {
    fn of(metadata: &Metadata<'_>) -> Self {
        let mut head = format!("\",\"level\":\"{}\",\"target\":\"", metadata.level());
        escape(&mut head, metadata.target());
        head.push('"');
        let name = |field: Field| {
            let mut name = String::from(",\"");
            // One in Rust's syntax, or one that is written with quotes around it.
            escape(&mut name, field.name());
            name + "\":\""
        };
        Self {
            callsite: metadata.callsite(),
            head,
            names: metadata.fields().iter().map(name).collect(),
        }
    }
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Longest line whose memory is kept for the next one, in bytes.
const MAX_KEPT: usize = 4 * 1024;

impl<S: Subscriber> Layer<S> for JsonLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // Taken out, for a value that is being written may tell of another event.
        let mut scratch = SCRATCH.take();
        scratch.write(event);
        self.0.add(scratch.line.as_bytes());
        scratch.line.shrink_to(MAX_KEPT);
        SCRATCH.set(scratch);
    }
}

impl Scratch {
    fn write(&mut self, event: &Event<'_>) {
        let metadata = event.metadata();
        self.line.clear();
        self.line.push_str("{\"timestamp\":\"");
        self.write_time(SystemTime::now());
        let place = match self.place.take() {
            Some(place) if place.callsite == metadata.callsite() => place,
            _ => Place::of(metadata),
        };
        self.line.push_str(&place.head);
        event.record(&mut Members {
            line: &mut self.line,
            names: &place.names,
        });
        self.place = Some(place);
        self.line.push_str("}\n");
    }

    /// RFC 3339 with microseconds. All but these is the same for all lines of a second.
    fn write_time(&mut self, time: SystemTime) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs();
        if self.second.as_ref().is_none_or(|(of, _)| *of != seconds) {
            let second = UNIX_EPOCH + Duration::from_secs(seconds);
            let mut text = humantime::format_rfc3339_seconds(second).to_string();
            text.pop();
            self.second = Some((seconds, text));
        }
        let second = self.second.as_ref().map_or("", |(_, text)| text);
        self.line.push_str(second);
        self.line.push('.');
        push_fraction(&mut self.line, since.subsec_micros(), 6);
        self.line.push('Z');
    }
}

/// Writes each field as a member of the object.
struct Members<'a> {
    line: &'a mut String,
    names: &'a [String],
}

impl Members<'_> {
    fn text(&mut self, field: &Field) {
        self.line.push_str(&self.names[field.index()]);
    }

    fn number(&mut self, field: &Field) {
        let name = &self.names[field.index()];
        self.line.push_str(&name[..name.len() - 1]);
    }
}

impl Visit for Members<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field);
        escape(self.line, value);
        self.line.push('"');
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field);
        // A `String` takes everything; what a value itself refuses to write is left out.
        let _ = write!(Escaped(self.line), "{value:?}");
        self.line.push('"');
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.number(field);
        push_number(self.line, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.number(field);
        if value < 0 {
            self.line.push('-');
        }
        push_number(self.line, value.unsigned_abs());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.number(field);
        self.line.push_str(if value { "true" } else { "false" });
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.number(field);
        push_float(self.line, value);
    }
}

fn push_number(line: &mut String, number: u64) {
    line.push_str(itoa::Buffer::new().format(number));
}

/// The digits of a fraction behind its point: so many.
fn push_fraction(line: &mut String, fraction: u32, digits: usize) {
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(fraction);
    line.extend(std::iter::repeat_n('0', digits.saturating_sub(text.len())));
    line.push_str(text);
}

/// The shortest text that is read as this number. Those of three decimals, as times in milliseconds are, take
/// a short way to it.
fn push_float(line: &mut String, value: f64) {
    const MOST: u64 = 1 << 52;
    // Of what is below zero or no number this makes 0.
    let thousandths = (value * 1e3 + 0.5) as u64;
    if thousandths < MOST && thousandths as f64 / 1e3 == value {
        push_number(line, thousandths / 1000);
        let mut fraction = (thousandths % 1000) as u32;
        if fraction > 0 {
            let mut digits = 3;
            while fraction.is_multiple_of(10) {
                fraction /= 10;
                digits -= 1;
            }
            line.push('.');
            push_fraction(line, fraction, digits);
        }
    } else if value.is_finite() {
        // A `String` takes everything.
        let _ = write!(line, "{value}");
    } else {
        // JSON has no other numbers.
        line.push_str("null");
    }
}

/// Appends text as the inside of a JSON string (RFC 8259, 7).
fn escape(line: &mut String, text: &str) {
    if is_plain(text.as_bytes()) {
        return line.push_str(text);
    }
    let mut rest = text;
    // Special bytes are ASCII, so the text may be cut before and behind them.
    while let Some(at) = rest.bytes().position(is_special) {
        let (plain, from) = rest.split_at(at);
        line.push_str(plain);
        match from.as_bytes()[0] {
            b'"' => line.push_str("\\\""),
            b'\\' => line.push_str("\\\\"),
            b'\n' => line.push_str("\\n"),
            b'\r' => line.push_str("\\r"),
            b'\t' => line.push_str("\\t"),
            control => {
                let _ = write!(line, "\\u{control:04x}");
            }
        }
        rest = &from[1..];
    }
    line.push_str(rest);
}

/// Which bytes a JSON string does not hold as they are.
const SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        special[byte] =
            (byte as u8).is_ascii_control() || byte == b'"' as usize || byte == b'\\' as usize;
        byte += 1;
    }
    special
};

fn is_special(byte: u8) -> bool {
    SPECIAL[usize::from(byte)]
}

/// Whether nothing in there is special, as nearly always. Of what is long, sixteen bytes are looked at in one step.
fn is_plain(bytes: &[u8]) -> bool {
    let Some(last) = bytes.last_chunk::<16>() else {
        return !bytes
            .iter()
            .fold(false, |any, byte| any | is_special(*byte));
    };
    let are_plain = |bytes: &[u8; 16]| {
        // Written so that it is done without a table.
        let is_plain =
            |byte: u8| (byte >= b' ') & (byte != b'"') & (byte != b'\\') & (byte != 0x7f);
        bytes.iter().fold(true, |all, byte| all & is_plain(*byte))
    };
    // The last sixteen may have been among those before.
    let (chunks, _) = bytes.as_chunks::<16>();
    chunks
        .iter()
        .fold(are_plain(last), |all, chunk| all & are_plain(chunk))
}

/// Text that is formatted into the inside of a JSON string.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(self.0, text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = String::from("\"");
        escape(&mut out, text);
        out + "\""
    }

    fn float(value: f64) -> String {
        let mut out = String::new();
        push_float(&mut out, value);
        out
    }

    proptest! {
        #[test]
        fn any_text_comes_back_from_its_escaped_form(text in any::<String>()) {
            let line = escaped(&text);
            prop_assert!(!line.bytes().any(|byte| byte < b' '));
            let back: String = serde_json::from_str(&line).expect("a JSON string");
            prop_assert_eq!(back, text);
        }

        #[test]
        fn text_is_plain_as_a_whole_where_all_its_bytes_are(
            text in "[a-z\"\\\\\u{1f} \u{7f}\u{80}\u{e9}]{0,40}"
        ) {
            let is_each = !text.bytes().any(is_special);
            prop_assert_eq!(is_plain(text.as_bytes()), is_each);
        }

        #[test]
        fn any_number_is_written_as_it_is_read(value in any::<f64>()) {
            if value.is_finite() {
                prop_assert_eq!(float(value).parse::<f64>(), Ok(value));
            } else {
                prop_assert_eq!(float(value), "null");
            }
        }

        #[test]
        fn any_number_of_milliseconds_is_written_as_it_is_read(micros in any::<u32>()) {
            let value = f64::from(micros) / 1e3;
            prop_assert_eq!(float(value), value.to_string());
        }

        #[test]
        fn a_time_is_written_as_others_write_it(micros in 0..4_000_000_000_000_000_u64) {
            let time = UNIX_EPOCH + Duration::from_micros(micros);
            let mut scratch = Scratch::default();
            for _ in 0..2 {
                scratch.line.clear();
                scratch.write_time(time);
                let written = humantime::format_rfc3339_micros(time).to_string();
                prop_assert_eq!(&scratch.line, &written);
            }
        }
    }

    #[test]
    fn numbers_have_no_more_digits_than_they_need() {
        for (value, text) in [
            (0.0, "0"),
            (0.125, "0.125"),
            (12.5, "12.5"),
            (7.0, "7"),
            (1000.04, "1000.04"),
            (-1.5, "-1.5"),
            (0.0001, "0.0001"),
        ] {
            assert_eq!(float(value), text);
        }
    }
}
