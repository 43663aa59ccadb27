//! An event as one line of JSON, written straight into the line.
//!
//! The subscriber's own formatter builds the same object through a serializer that checks every piece
//! for UTF-8 and costs more than the rest of a manifest's answer. Invariant: whatever a field holds, a
//! line is one object and its control characters are escaped.

use std::fmt::{self, Write as _};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Formats events, with their fields at the top; spans are not written.
#[derive(Debug)]
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        line.write_str("{\"timestamp\":\"")?;
        write!(
            line,
            "{}",
            humantime::format_rfc3339_micros(SystemTime::now())
        )?;
        line.write_str("\",\"level\":\"")?;
        line.write_str(metadata.level().as_str())?;
        line.write_str("\",\"target\":\"")?;
        Escaped(&mut line).write_str(metadata.target())?;
        line.write_char('"')?;
        let mut members = Members {
            line: &mut line,
            written: Ok(()),
        };
        event.record(&mut members);
        members.written?;
        line.write_str("}\n")
    }
}

/// Writes each field as a member of the object. Visiting cannot fail, so the first failure is kept.
struct Members<'a, 'line> {
    line: &'a mut Writer<'line>,
    written: fmt::Result,
}

impl<'line> Members<'_, 'line> {
    fn member(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'line>) -> fmt::Result) {
        let Ok(()) = self.written else { return };
        self.written = (|| {
            self.line.write_str(",\"")?;
            Escaped(self.line).write_str(field.name())?;
            self.line.write_str("\":")?;
            value(self.line)
        })();
    }

    fn text(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.member(field, |line| {
            line.write_char('"')?;
            Escaped(line).write_fmt(value)?;
            line.write_char('"')
        });
    }
}

impl Visit for Members<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, |line| {
            line.write_char('"')?;
            Escaped(line).write_str(value)?;
            line.write_char('"')
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format_args!("{value:?}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |line| write!(line, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |line| write!(line, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |line| write!(line, "{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.member(field, |line| match value.is_finite() {
            true => write!(line, "{value}"),
            // JSON has no other numbers.
            false => line.write_str("null"),
        });
    }
}

/// Writes text as the inside of a JSON string (RFC 8259, 7).
struct Escaped<'a, W>(&'a mut W);

impl<W: fmt::Write> fmt::Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        let special = |byte: u8| byte < b' ' || matches!(byte, b'"' | b'\\' | 0x7f);
        // Nearly all text is plain. Seen as a whole, sixteen bytes are looked at in one step.
        let is_plain = text
            .bytes()
            .fold(true, |plain, byte| plain & !special(byte));
        if is_plain {
            return self.0.write_str(text);
        }
        // Special bytes are ASCII, so the text may be cut before and behind them.
        while let Some(at) = rest.bytes().position(special) {
            let (plain, from) = rest.split_at(at);
            self.0.write_str(plain)?;
            match from.as_bytes()[0] {
                b'"' => self.0.write_str("\\\"")?,
                b'\\' => self.0.write_str("\\\\")?,
                b'\n' => self.0.write_str("\\n")?,
                b'\r' => self.0.write_str("\\r")?,
                b'\t' => self.0.write_str("\\t")?,
                control => write!(self.0, "\\u{control:04x}")?,
            }
            rest = &from[1..];
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = String::from("\"");
        Escaped(&mut out).write_str(text).expect("a String");
        out + "\""
    }

    proptest! {
        #[test]
        fn any_text_comes_back_from_its_escaped_form(text in any::<String>()) {
            let line = escaped(&text);
            prop_assert!(!line.bytes().any(|byte| byte < b' '));
            let back: String = serde_json::from_str(&line).expect("a JSON string");
            prop_assert_eq!(back, text);
        }
    }
}
