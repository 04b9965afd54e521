//! Stands in for `uring` on systems that have nothing of the kind: there is no [`Ring`] and no [`Event`].

use memmap2::MmapMut;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;

pub(super) struct Event(Infallible);

impl Event {
    pub fn new() -> io::Result<Event> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn signal(&self) {
        match self.0 {}
    }
}

pub(super) struct Ended<T> {
    pub memory: MmapMut,
    pub what: T,
    pub result: io::Result<usize>,
}

pub(super) struct Ring<'f, T> {
    never: Infallible,
    reads: PhantomData<(&'f File, T)>,
}

impl<'f, T> Ring<'f, T> {
    pub fn new(_: usize, event: &'f Event) -> io::Result<Ring<'f, T>> {
        match event.0 {}
    }

    pub fn begin(&mut self, _: &'f File, _: u64, _: MmapMut, _: Range<usize>, _: T) {
        match self.never {}
    }

    pub fn wait(&mut self, _: &mut Vec<Ended<T>>) -> io::Result<()> {
        match self.never {}
    }
}
