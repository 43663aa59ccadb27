//! Items in a byte stream: each event is a line of JSON; a line `{"event":"data","length":N}` is followed
//! by N bytes as they are.
//!
//! A request is a line of JSON, too; what follows it is the operation's input. Pure.

use bytes::{Buf as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::message::Request;
use super::running::Item;

/// The longest line that is read, in bytes: whoever sends a longer one is not us.
const MAX_LINE: usize = 4 * 1024 * 1024;

/// Why bytes are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not a line of JSON with the expected words.
    #[error("not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// A line without end.
    #[error("a line is longer than {MAX_LINE} bytes")]
    TooLong,
}

/// The word that says what a line is.
#[derive(Deserialize)]
struct Word<'a> {
    #[serde(borrow)]
    event: std::borrow::Cow<'a, str>,
}

/// The line before data.
#[derive(Serialize, Deserialize)]
struct DataLine {
    event: DataWord,
    length: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum DataWord {
    Data,
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // What is written here has text for keys and no failing serializer, so it always has a form.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A request as its line.
pub fn request_line(request: &Request) -> Bytes {
    line(request).into()
}

/// An item as bytes, in one piece or two.
pub fn encode(item: Item) -> (Bytes, Option<Bytes>) {
    match item {
        Item::Event(event) => (line(&event).into(), None),
        Item::Data(data) => {
            let length = data.len() as u64;
            let event = DataWord::Data;
            (line(&DataLine { event, length }).into(), Some(data))
        }
    }
}

/// Cuts a line off `buffer`; `None` if it is not complete yet.
fn take_line(buffer: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
    match buffer.iter().position(|byte| *byte == b'\n') {
        Some(at) if at <= MAX_LINE => {
            let line = buffer.split_to(at).freeze();
            buffer.advance(1);
            Ok(Some(line))
        }
        None if buffer.len() <= MAX_LINE => Ok(None),
        _ => Err(WireError::TooLong),
    }
}

/// Takes a request off the front of what was received; `None` if it is not complete yet.
///
/// # Errors
/// It is no request.
pub fn take_request(buffer: &mut BytesMut) -> Result<Option<Request>, WireError> {
    let line = take_line(buffer)?;
    let request = line.map(|line| serde_json::from_slice(&line));
    Ok(request.transpose()?)
}

/// Reads items from a stream that comes in pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// Bytes of data still to come.
    data: u64,
}

impl Decoder {
    /// Takes in a piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next item that has arrived. Data comes as it arrives, in other pieces than it was sent.
    ///
    /// # Errors
    /// The stream is not one of items.
    pub fn take(&mut self) -> Result<Option<Item>, WireError> {
        loop {
            if self.data > 0 {
                let ready = self.buffer.len();
                let count = usize::try_from(self.data).unwrap_or(ready).min(ready);
                self.data -= count as u64;
                let data = self.buffer.split_to(count).freeze();
                return Ok((count > 0).then_some(Item::Data(data)));
            }
            let Some(line) = take_line(&mut self.buffer)? else {
                return Ok(None);
            };
            if serde_json::from_slice::<Word<'_>>(&line)?.event == "data" {
                self.data = serde_json::from_slice::<DataLine>(&line)?.length;
            } else {
                return Ok(Some(Item::Event(serde_json::from_slice(&line)?)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message::{Event, Reason};
    use super::*;

    fn items() -> impl Strategy<Value = Vec<Item>> {
        let item = prop_oneof![
            any::<Vec<u8>>().prop_map(|data| Item::Data(data.into())),
            ".{0,40}".prop_map(|text| Item::Event(Event::End {
                error: Some(Reason::Failed(text)),
            })),
        ];
        prop::collection::vec(item, 0..8)
    }

    /// Data of neighbours in one piece: where it was cut is not told.
    fn joined(items: impl IntoIterator<Item = Item>) -> Vec<Item> {
        let mut joined: Vec<Item> = Vec::new();
        for item in items {
            match (joined.last_mut(), item) {
                (_, Item::Data(data)) if data.is_empty() => {}
                (Some(Item::Data(before)), Item::Data(data)) => {
                    *before = [&before[..], &data[..]].concat().into();
                }
                (_, item) => joined.push(item),
            }
        }
        joined
    }

    proptest! {
        #[test]
        fn items_survive_the_wire_however_it_cuts_them(items in items(), piece in 1_usize..50) {
            let mut wire = Vec::new();
            for item in items.clone() {
                let (line, data) = encode(item);
                wire.extend_from_slice(&line);
                wire.extend_from_slice(&data.unwrap_or_default());
            }
            let mut decoder = Decoder::default();
            let mut read = Vec::new();
            for piece in wire.chunks(piece) {
                decoder.push(piece);
                while let Some(item) = decoder.take().expect("items") {
                    read.push(item);
                }
            }
            prop_assert_eq!(joined(read), joined(items));
        }

        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            let mut decoder = Decoder::default();
            decoder.push(&noise);
            while let Ok(Some(_)) = decoder.take() {}
            let _ = take_request(&mut BytesMut::from(&noise[..]));
        }
    }

    #[test]
    fn a_request_ends_where_its_input_begins() {
        let mut buffer = BytesMut::from(&request_line(&Request::Stats)[..]);
        buffer.extend_from_slice(b"input\n");
        assert_eq!(
            take_request(&mut buffer).expect("fine"),
            Some(Request::Stats)
        );
        assert_eq!(&buffer[..], b"input\n");
        let mut half = BytesMut::from(&b"{\"operation\""[..]);
        assert!(take_request(&mut half).expect("fine").is_none());
        let mut endless = BytesMut::from(&vec![b'['; MAX_LINE + 1][..]);
        assert!(matches!(
            take_request(&mut endless),
            Err(WireError::TooLong)
        ));
    }
}
