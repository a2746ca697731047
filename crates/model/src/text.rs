//! Reads texts: plain files and JSON lines, either of them compressed with gzip or Zstandard, one document at a time.
//!
//! What a file is follows from its bytes and its name. The compression is told by the first bytes (`1f 8b` for gzip,
//! `28 b5 2f fd` for Zstandard). `.jsonl`, `.ndjson` and `.json`, after a `.gz` or `.zst` is taken off, are JSON lines;
//! `.txt` and `.md` are plain text; any other name is JSON lines if the first line is a JSON object. A plain file is
//! one document; every line of JSON lines that is not blank is one, its text the string under `text`.
//!
//! Files are streamed, so that a few kilobytes of compressed zeros cannot fill the memory: a document is read up to
//! [`DOCUMENT_LIMIT`] bytes and a file up to [`FILE_LIMIT`], and either limit is an error rather than a silent cut.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The longest single document, in bytes after decompression: 32 MiB. A document is encoded whole, for which a tokenizer
/// holds more than a hundred bytes for each of its bytes: 3.6 GB here.
pub const DOCUMENT_LIMIT: u64 = 32 << 20;

/// The most that is read of one file, in bytes after decompression: 4 GiB, or about 10⁹ tokens.
pub const FILE_LIMIT: u64 = 4 << 30;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952, one member or several.
    Gzip,
    /// RFC 8878, one frame or several.
    Zstandard,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstandard => "zstd",
        })
    }
}

/// Why a text could not be read. Lines count from 1, bytes from 0 and after decompression.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The file is not there.
    #[error("no such file: {path}", path = .path.display())]
    NotFound {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The file is there but cannot be read: a folder, say, or no permission.
    #[error("cannot read {path}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The compressed data ends early or contradicts itself.
    #[error("{path} is corrupted: its {compression} data cannot be decompressed", path = .path.display())]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// How it claims to be compressed.
        compression: Compression,
        /// What the decompressor says.
        source: io::Error,
    },
    /// Nothing but white space, or no document with any text.
    #[error("{path} holds no text", path = .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A byte sequence that is not UTF-8.
    #[error("{path} is not UTF-8: invalid at byte {byte}; convert it first, for example with iconv", path = .path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the first invalid sequence begins.
        byte: u64,
    },
    /// A line that is not a JSON object.
    #[error("{path}, line {line}: not a JSON object", path = .path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// What the parser says; absent where the line is JSON, but no object.
        source: Option<serde_json::Error>,
    },
    /// An object without a string under `text`.
    #[error("{path}, line {line}: the object has no string under `text`", path = .path.display())]
    NoTextField {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
    },
    /// A document or a file goes on past its limit.
    #[error("{path} holds {what} of more than {limit} MiB; {way_out}", path = .path.display(), limit = .limit >> 20)]
    TooLong {
        /// The file.
        path: PathBuf,
        /// What is too long.
        what: &'static str,
        /// The limit in bytes.
        limit: u64,
        /// What to do about it.
        way_out: &'static str,
    },
}

/// What lies in a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    JsonLines,
}

/// The documents of one file, in order. Ends after the first error.
pub struct Documents {
    path: PathBuf,
    compression: Option<Compression>,
    reader: Box<dyn BufRead>,
    form: Form,
    line: u64,
    bytes_read: u64,
    texts_found: u64,
    done: bool,
}

impl Documents {
    /// Opens a file and finds out what it is, reading no more than its beginning.
    ///
    /// # Errors
    /// [`TextError::NotFound`], [`TextError::Unreadable`], or [`TextError::Corrupted`].
    pub fn open(path: &Path) -> Result<Self, TextError> {
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => TextError::NotFound { path: path.into() },
            _ => TextError::Unreadable { path: path.into(), source },
        };
        let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(unreadable)?);
        let compression = match file.fill_buf().map_err(unreadable)? {
            [0x1f, 0x8b, ..] => Some(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstandard),
            _ => None,
        };
        let reader: Box<dyn BufRead> = match compression {
            None => Box::new(file),
            Some(Compression::Gzip) => {
                Box::new(BufReader::with_capacity(1 << 16, flate2::bufread::MultiGzDecoder::new(file)))
            }
            Some(Compression::Zstandard) => {
                let decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(unreadable)?;
                Box::new(BufReader::with_capacity(1 << 16, decoder))
            }
        };
        let mut documents = Self {
            path: path.into(),
            compression,
            reader,
            form: Form::Plain,
            line: 0,
            bytes_read: 0,
            texts_found: 0,
            done: false,
        };
        documents.form = documents.detect_form()?;
        Ok(documents)
    }

    /// The form by the file's name; a name that says nothing leaves it to the first line.
    fn detect_form(&mut self) -> Result<Form, TextError> {
        let mut name = self.path.clone();
        let lowercase = |path: &Path| path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if matches!(lowercase(&name).as_str(), "gz" | "zst" | "zstd") {
            name.set_extension("");
        }
        match lowercase(&name).as_str() {
            "jsonl" | "ndjson" | "json" => return Ok(Form::JsonLines),
            "txt" | "text" | "md" => return Ok(Form::Plain),
            _ => {}
        }
        let beginning = match self.reader.fill_buf() {
            Ok(beginning) => strip_mark(beginning),
            Err(source) => return Err(self.read_error(source)),
        };
        // The first line may be longer than what is buffered: an object cut short still tells an object.
        let line =
            beginning.split(|&byte| byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
        let is_object = line.trim_ascii_start().starts_with(b"{")
            && match serde_json::from_slice::<serde::de::IgnoredAny>(line) {
                Ok(_) => true,
                Err(error) => error.is_eof() && beginning.ends_with(line),
            };
        Ok(if is_object { Form::JsonLines } else { Form::Plain })
    }

    fn read_error(&self, source: io::Error) -> TextError {
        let path = self.path.clone();
        match self.compression {
            Some(compression) => TextError::Corrupted { path, compression, source },
            None => TextError::Unreadable { path, source },
        }
    }

    /// Reads to the end of the line, or of the file, as valid UTF-8. `None` at the end of the file.
    fn read_piece(&mut self, whole_file: bool) -> Result<Option<String>, TextError> {
        let start = self.bytes_read;
        let room = DOCUMENT_LIMIT.min(FILE_LIMIT - start);
        let mut bytes = Vec::new();
        let mut limited = self.reader.as_mut().take(room + 1);
        let read = match whole_file {
            true => limited.read_to_end(&mut bytes),
            false => limited.read_until(b'\n', &mut bytes),
        };
        if let Err(source) = read {
            return Err(self.read_error(source));
        }
        let length = bytes.len() as u64;
        if length > room {
            let path = self.path.clone();
            return Err(if room == DOCUMENT_LIMIT {
                let way_out = "split it into several files, or into JSON lines of one document each";
                TextError::TooLong { path, what: "a document", limit: DOCUMENT_LIMIT, way_out }
            } else {
                let way_out = "give a part of it";
                TextError::TooLong { path, what: "texts", limit: FILE_LIMIT, way_out }
            });
        }
        self.bytes_read += length;
        if length == 0 {
            return Ok(None);
        }
        if start == 0 {
            let mark = bytes.len() - strip_mark(&bytes).len();
            bytes.drain(..mark);
        }
        String::from_utf8(bytes).map(Some).map_err(|error| {
            let mark = self.bytes_read - start - error.as_bytes().len() as u64;
            TextError::NotUtf8 { path: self.path.clone(), byte: start + mark + error.utf8_error().valid_up_to() as u64 }
        })
    }

    fn next_document(&mut self) -> Result<Option<String>, TextError> {
        let document = match self.form {
            Form::Plain if self.texts_found > 0 => return Ok(None),
            Form::Plain => self.read_piece(true)?.filter(|text| !text.trim().is_empty()),
            Form::JsonLines => self.next_line_of_text()?,
        };
        if document.is_none() && self.texts_found == 0 {
            return Err(TextError::Empty { path: self.path.clone() });
        }
        self.texts_found += u64::from(document.is_some());
        Ok(document)
    }

    /// The text of the next line that has one; blank lines and empty texts are passed over.
    fn next_line_of_text(&mut self) -> Result<Option<String>, TextError> {
        #[derive(Deserialize)]
        struct Record {
            text: Option<serde_json::Value>,
        }
        while let Some(line) = self.read_piece(false)? {
            self.line += 1;
            let (path, number) = (&self.path, self.line);
            if line.trim().is_empty() {
                continue;
            }
            // serde would also take an array for the record, by position.
            if !line.trim_start().starts_with('{') {
                let source = serde_json::from_str::<serde::de::IgnoredAny>(&line).err();
                return Err(TextError::NotJson { path: path.clone(), line: number, source });
            }
            let record: Record = serde_json::from_str(&line).map_err(|source| TextError::NotJson {
                path: path.clone(),
                line: number,
                source: Some(source),
            })?;
            match record.text {
                Some(serde_json::Value::String(text)) if text.is_empty() => {}
                Some(serde_json::Value::String(text)) => return Ok(Some(text)),
                _ => return Err(TextError::NoTextField { path: path.clone(), line: number }),
            }
        }
        Ok(None)
    }
}

impl Iterator for Documents {
    type Item = Result<String, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.next_document().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

/// The documents of several files, one file after the other, each opened when its turn comes.
pub fn documents(paths: &[PathBuf]) -> impl Iterator<Item = Result<String, TextError>> {
    paths.iter().flat_map(|path| match Documents::open(path) {
        Ok(documents) => Box::new(documents) as Box<dyn Iterator<Item = Result<String, TextError>>>,
        Err(error) => Box::new(std::iter::once(Err(error))),
    })
}

/// The bytes without a UTF-8 byte order mark at their beginning.
fn strip_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}
