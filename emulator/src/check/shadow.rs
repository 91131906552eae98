//! What is remembered about the bytes of one allocation.

/// One access of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Linear index of the cluster.
    pub(crate) cluster: u32,
    /// Index of the warp in the cluster; asynchronous operations have an index of their own behind the warps.
    pub(crate) warp: u16,
    pub(crate) lane: u8,
    /// The bytes of the word, and in bit 7 whether the access was strong (atomic, or with a memory order).
    pub(crate) bytes: u8,
    /// The warp's own clock.
    pub(crate) clock: u32,
    pub(crate) pc: u32,
}

const NOBODY: Record = Record {
    cluster: u32::MAX,
    warp: 0,
    lane: 0,
    bytes: 0,
    clock: 0,
    pc: 0,
};

/// [`Record::bytes`]: the access was strong.
pub(crate) const STRONG: u8 = 0x80;
const READERS: usize = 3;
const PAGE: usize = 256;

/// The last accesses of four bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word {
    pub(crate) write: Record,
    pub(crate) reads: [Record; READERS],
}

const UNTOUCHED: Word = Word {
    write: NOBODY,
    reads: [NOBODY; READERS],
};

impl Record {
    /// Whether an access happened and touched one of these bytes.
    pub(crate) fn overlaps(&self, bytes: u8) -> bool {
        self.bytes & bytes & 0xF != 0
    }
}

impl Word {
    /// Remembers a read; the oldest of another warp gives way.
    pub(crate) fn add_read(&mut self, record: Record) {
        let same = |r: &Record| r.bytes == 0 || r.cluster == record.cluster && r.warp == record.warp;
        let place = self
            .reads
            .iter()
            .position(same)
            .unwrap_or(record.clock as usize % READERS);
        self.reads[place] = record;
    }
}

/// What is remembered about the bytes of one allocation. Empty until a check needs it.
#[derive(Default)]
pub(crate) struct Shadow {
    length: u64,
    /// One bit for each byte that was written.
    written: Vec<u64>,
    /// One bit for each byte that is secret; empty while none is.
    secret: Vec<u64>,
    words: Vec<Option<Box<[Word; PAGE]>>>,
}

/// The bits of `bytes` bytes from `offset`, word by word of 64.
fn spans(offset: u64, bytes: u64) -> impl Iterator<Item = (usize, u64)> {
    let end = offset + bytes;
    (offset / 64..end.div_ceil(64)).map(move |i| {
        let low = offset.max(i * 64) - i * 64;
        let high = end.min(i * 64 + 64) - i * 64;
        (i as usize, crate::lower::types::ones((high - low) as u32) << low)
    })
}

impl Shadow {
    /// Makes room for an allocation.
    pub(crate) fn fit(&mut self, length: u64) {
        if self.length != length || self.written.is_empty() {
            self.length = length;
            self.written.resize(length.div_ceil(64) as usize, 0);
        }
    }

    pub(crate) fn define(&mut self, offset: u64, bytes: u64) {
        for (i, bits) in spans(offset, bytes) {
            self.written[i] |= bits;
        }
    }

    pub(crate) fn undefine(&mut self, offset: u64, bytes: u64) {
        for (i, bits) in spans(offset, bytes) {
            self.written[i] &= !bits;
        }
    }

    /// The first of these bytes that was never written.
    pub(crate) fn undefined(&self, offset: u64, bytes: u64) -> Option<u64> {
        spans(offset, bytes).find_map(|(i, bits)| {
            let missing = bits & !self.written[i];
            (missing != 0).then(|| i as u64 * 64 + u64::from(missing.trailing_zeros()))
        })
    }

    pub(crate) fn taint(&mut self, offset: u64, bytes: u64, secret: bool) {
        if self.secret.is_empty() {
            if !secret {
                return;
            }
            self.secret.resize(self.length.div_ceil(64) as usize, 0);
        }
        for (i, bits) in spans(offset, bytes) {
            if secret {
                self.secret[i] |= bits;
            } else {
                self.secret[i] &= !bits;
            }
        }
    }

    /// Whether nothing of the allocation was ever secret.
    pub(crate) fn has_no_secrets(&self) -> bool {
        self.secret.is_empty()
    }

    pub(crate) fn is_secret(&self, offset: u64, bytes: u64) -> bool {
        !self.secret.is_empty() && spans(offset, bytes).any(|(i, bits)| self.secret[i] & bits != 0)
    }

    /// Words from one on, at most so many: those of a page.
    pub(crate) fn words_from(&mut self, index: u64, most: u64) -> &mut [Word] {
        self.word(index);
        let (page, at) = ((index as usize) / PAGE, (index as usize) % PAGE);
        let end = PAGE.min(at + most.min(PAGE as u64) as usize);
        match &mut self.words[page] {
            Some(words) => &mut words[at..end],
            None => &mut [],
        }
    }

    pub(crate) fn word(&mut self, index: u64) -> &mut Word {
        let (page, at) = ((index as usize) / PAGE, (index as usize) % PAGE);
        if self.words.len() <= page {
            self.words
                .resize_with((self.length.div_ceil(4) as usize).div_ceil(PAGE).max(page + 1), || None);
        }
        &mut self.words[page].get_or_insert_with(|| Box::new([UNTOUCHED; PAGE]))[at]
    }

    /// Drops the accesses, keeps what is written and secret.
    pub(crate) fn forget(&mut self) {
        self.words.clear();
    }
}
