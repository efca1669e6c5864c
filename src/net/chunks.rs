//! The chunked transfer coding of a request's body, checked strictly against RFC 9112 §7.1. Pure.
//!
//! Implementations differ in what they accept: bare LF, arbitrary bytes in extensions, a size without digits. What is a body for one
//! is the next request for the other. So nothing is passed on that two parsers could read differently.

use super::grammar::{is_text, is_token};

/// Maximum bytes of a chunk's first line, or of a trailer field; longer ones are rejected (RFC 9112 §7.1.1 asks for a bound).
const LINE_BYTES_MAX: usize = 4096;
/// Maximum bytes of all trailer fields.
const TRAILER_BYTES_MAX: usize = 16 * 1024;
/// Maximum digits of a chunk's size: a size below 2^60.
const SIZE_DIGITS_MAX: usize = 15;

/// The body is not in the chunked coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// The result of [`Chunks::decode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decoded {
    /// The bytes consumed.
    pub(super) taken: usize,
    /// The decoded bytes, which are now in front.
    pub(super) data: usize,
}

/// A decoder of the chunked coding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunks {
    at: At,
    /// The chunk's size while its digits are read; then the bytes left of it.
    left: u64,
    digits: usize,
    line_bytes: usize,
    trailers: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Size,
    /// Whitespace before the `;` of an extension.
    BeforeExtension,
    BeforeName,
    Name,
    AfterName,
    BeforeValue,
    Token,
    Quoted,
    Escaped,
    /// After a quoted value, or whitespace after any value.
    AfterValue,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    End,
    /// The body is malformed.
    Broken,
}

impl Chunks {
    /// A decoder at the start of a body.
    pub(super) fn new() -> Self {
        Self { at: At::Size, left: 0, digits: 0, line_bytes: 0, trailers: Vec::new() }
    }

    /// Whether the body has ended: following bytes belong to another request.
    pub(super) fn is_over(&self) -> bool {
        self.at == At::End
    }

    /// Decodes bytes in place, moving the body's own bytes to the front. Stops at the body's end.
    ///
    /// # Errors
    /// The bytes are malformed; nothing after them is usable.
    pub(super) fn decode(&mut self, bytes: &mut [u8]) -> Result<Decoded, Malformed> {
        let (mut taken, mut data) = (0, 0);
        while !self.is_over() && taken < bytes.len() {
            if self.at == At::Data {
                let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - taken);
                bytes.copy_within(taken..taken + count, data);
                self.left -= count as u64;
                (taken, data) = (taken + count, data + count);
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            let Some(&byte) = bytes.get(taken) else { break };
            taken += 1;
            self.line_bytes += 1;
            if self.line_bytes > LINE_BYTES_MAX {
                return Err(Malformed);
            }
            // Stays broken, and not over, when it is an error.
            let before = std::mem::replace(&mut self.at, At::Broken);
            self.at = self.next(before, byte).ok_or(Malformed)?;
            let is_trailer = matches!(before, At::TrailerStart | At::TrailerName | At::TrailerValue | At::TrailerLf);
            if is_trailer && self.at != At::EndLf {
                self.trailers.push(byte);
            }
        }
        Ok(Decoded { taken, data })
    }

    /// The end of the body as it is in the chunked coding, with the trailers that came.
    pub(super) fn last(&self) -> Vec<u8> {
        [&b"0\r\n"[..], &self.trailers, b"\r\n"].concat()
    }

    fn next(&mut self, at: At, byte: u8) -> Option<At> {
        Some(match (at, byte) {
            (At::Size, byte) if byte.is_ascii_hexdigit() => {
                self.digits += 1;
                if self.digits > SIZE_DIGITS_MAX {
                    return None;
                }
                self.left = self.left * 16 + u64::from(char::from(byte).to_digit(16)?);
                At::Size
            }
            (At::Size, _) if self.digits == 0 => return None,
            (At::Size | At::Name | At::Token | At::AfterValue, b'\r') => At::SizeLf,
            (At::Size | At::BeforeExtension | At::Name | At::AfterName | At::Token | At::AfterValue, b';') => {
                At::BeforeName
            }
            (At::Size | At::BeforeExtension, b' ' | b'\t') => At::BeforeExtension,
            (At::BeforeName, b' ' | b'\t') => At::BeforeName,
            (At::BeforeName | At::Name, byte) if is_token(byte) => At::Name,
            (At::Name | At::AfterName, b' ' | b'\t') => At::AfterName,
            (At::Name | At::AfterName, b'=') => At::BeforeValue,
            (At::BeforeValue, b' ' | b'\t') => At::BeforeValue,
            (At::BeforeValue, b'"') => At::Quoted,
            (At::BeforeValue | At::Token, byte) if is_token(byte) => At::Token,
            (At::Token, b' ' | b'\t') => At::BeforeExtension,
            (At::AfterValue, b' ' | b'\t') => At::BeforeExtension,
            (At::Quoted, b'"') => At::AfterValue,
            (At::Quoted, b'\\') => At::Escaped,
            (At::Quoted | At::Escaped, byte) if is_text(byte) => At::Quoted,
            (At::SizeLf, b'\n') => {
                (self.digits, self.line_bytes) = (0, 0);
                if self.left == 0 { At::TrailerStart } else { At::Data }
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => {
                self.line_bytes = 0;
                At::Size
            }
            (At::TrailerStart, b'\r') => At::EndLf,
            (At::TrailerStart | At::TrailerName, byte) if is_token(byte) => At::TrailerName,
            (At::TrailerName, b':') => At::TrailerValue,
            (At::TrailerValue, b'\r') => At::TrailerLf,
            (At::TrailerValue, byte) if is_text(byte) => At::TrailerValue,
            (At::TrailerLf, b'\n') => {
                self.line_bytes = 0;
                if self.trailers.len() > TRAILER_BYTES_MAX {
                    return None;
                }
                At::TrailerStart
            }
            (At::EndLf, b'\n') => At::End,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it came to the body's end; an error where it is not one. Read whole and byte by byte, which must be the same.
    fn read(body: &[u8]) -> Result<bool, Malformed> {
        let (mut whole, mut single) = (Chunks::new(), Chunks::new());
        let mut bytes = body.to_vec();
        let all = whole.decode(&mut bytes).map(|decoded| (decoded.taken, bytes[..decoded.data].to_vec()));
        let each = body.iter().try_fold((0, Vec::new()), |(taken, mut data), byte| {
            let mut one = [*byte];
            let decoded = single.decode(&mut one)?;
            data.extend_from_slice(&one[..decoded.data]);
            Ok((taken + decoded.taken, data))
        });
        assert_eq!(all, each, "{:?}", body.escape_ascii().to_string());
        assert_eq!(whole, single);
        all.map(|_| whole.is_over())
    }

    #[test]
    fn what_is_decoded_is_the_body_and_its_trailers() {
        let mut body = *b"3;a=b\r\nabc\r\n2\r\n\r\n\r\n0\r\nX-Sum: 7\r\ny:\r\n\r\nGET /";
        let mut chunks = Chunks::new();
        let decoded = chunks.decode(&mut body).unwrap();
        assert_eq!(&body[..decoded.data], b"abc\r\n");
        assert_eq!(&body[decoded.taken..], b"GET /");
        assert_eq!(chunks.last(), b"0\r\nX-Sum: 7\r\ny:\r\n\r\n");
    }

    #[test]
    fn bodies_of_rfc9112_7_1_are_read_to_their_end() {
        for body in [
            &b"0\r\n\r\n"[..],
            b"3\r\nabc\r\n0\r\n\r\n",
            b"3\r\n\r\n\n\r\n0\r\n\r\n",
            b"00A\r\n0123456789\r\n000\r\n\r\n",
            b"a;n\r\n0123456789\r\n0;last=1\r\n\r\n",
            b"1 ; a = b ;c=\"d;\\\"\te\xfc\" ; f\r\nx\r\n0\r\n\r\n",
            b"1;a=\"\"\r\nx\r\n0\r\nTrailer: 1\r\nX-Empty:\r\nX:\ta b \r\n\r\n",
        ] {
            assert_eq!(read(body), Ok(true), "{:?}", body.escape_ascii().to_string());
            let piped = [body, b"GET /\0\n"].concat();
            assert_eq!(read(&piped), Ok(true), "what follows is not the body's");
        }
        for unfinished in [&b""[..], b"3", b"3\r\nab", b"3\r\nabc\r\n0\r\n", b"0\r\nX: y\r\n", b"0\r\n\r"] {
            assert_eq!(read(unfinished), Ok(false), "{:?}", unfinished.escape_ascii().to_string());
        }
    }

    #[test]
    fn whatever_else_is_refused() {
        for body in [
            &b"2;\nxx\r\n28\r\n0\r\n\r\n"[..],
            b"\r\n0\r\n\r\n",
            b"\n0\r\n\r\n",
            b" 3\r\nabc\r\n0\r\n\r\n",
            b"3 \r\nabc\r\n0\r\n\r\n",
            b"3\nabc\r\n0\r\n\r\n",
            b"3\rabc\r\n0\r\n\r\n",
            b"3\r\r\nabc\r\n0\r\n\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"3\r\nab\r\n0\r\n\r\n",
            b"3\r\nabc0\r\n\r\n",
            b"3\r\nabc\r\n\r\n",
            b"0x3\r\nabc\r\n0\r\n\r\n",
            b"+3\r\nabc\r\n0\r\n\r\n",
            b"-1\r\n0\r\n\r\n",
            b"3_\r\nabc\r\n0\r\n\r\n",
            b"3,3\r\nabc\r\n0\r\n\r\n",
            b"zz\r\n",
            b"3;\r\nabc\r\n0\r\n\r\n",
            b"3;a\0b\r\nabc\r\n0\r\n\r\n",
            b"3;a=\"\x01\"\r\nabc\r\n0\r\n\r\n",
            b"3;a=\"\n\"\r\nabc\r\n0\r\n\r\n",
            b"3;a=\"\\\r\n\"\r\nabc\r\n0\r\n\r\n",
            b"3;a=\r\nabc\r\n0\r\n\r\n",
            b"3;a b\r\nabc\r\n0\r\n\r\n",
            b"3;a=\"b\"c\r\nabc\r\n0\r\n\r\n",
            b"3\0\r\nabc\r\n0\r\n\r\n",
            b"1000000000000000\r\n",
            b"ffffffffffffffffff\r\n",
            b"0\n\r\n",
            b"0\r\n\n",
            b"0\r\n\r\r\n",
            b"0\r\nX y: z\r\n\r\n",
            b"0\r\nX : z\r\n\r\n",
            b"0\r\n: z\r\n\r\n",
            b"0\r\nX\r\n\r\n",
            b"0\r\n X: z\r\n\r\n",
            b"0\r\nX: y\r\n folded\r\n\r\n",
            b"0\r\nX: a\0b\r\n\r\n",
            b"0\r\nX: a\nY: b\r\n\r\n",
            b"0\r\nX: a\rY: b\r\n\r\n",
            b"0\r\nGET / HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(read(body), Err(Malformed), "{:?}", body.escape_ascii().to_string());
        }
    }

    #[test]
    fn lines_and_trailers_are_bounded() {
        let long = |bytes: usize| format!("1;a={}\r\nx\r\n0\r\n\r\n", "b".repeat(bytes));
        assert_eq!(read(long(LINE_BYTES_MAX - 10).as_bytes()), Ok(true));
        assert_eq!(read(long(LINE_BYTES_MAX).as_bytes()), Err(Malformed));
        let trailers = |times: usize| format!("0\r\n{}\r\n", format!("X: {}\r\n", "y".repeat(995)).repeat(times));
        assert_eq!(read(trailers(16).as_bytes()), Ok(true));
        assert_eq!(read(trailers(17).as_bytes()), Err(Malformed));
    }
}
