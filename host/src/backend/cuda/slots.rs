//! Identifiers for live objects: never taken for another object, even after its place is reused.

use std::sync::{Arc, PoisonError, RwLock};

use crate::{Error, Result};

/// Objects by identifier. Reading takes a shared lock for the time of one reference count.
pub(super) struct Slots<T> {
    what: &'static str,
    table: RwLock<Table<T>>,
}

struct Table<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

struct Place<T> {
    /// How often the place has been given out; the upper half of the identifier.
    generation: u32,
    object: Option<Arc<T>>,
}

impl<T> Slots<T> {
    pub(super) fn new(what: &'static str) -> Slots<T> {
        Slots {
            what,
            table: RwLock::new(Table {
                places: Vec::new(),
                free: Vec::new(),
            }),
        }
    }

    pub(super) fn insert(&self, object: T) -> u64 {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let index = table.free.pop().unwrap_or_else(|| {
            table.places.push(Place {
                generation: 0,
                object: None,
            });
            table.places.len() as u32 - 1
        });
        let place = &mut table.places[index as usize];
        place.generation = place.generation.wrapping_add(1);
        place.object = Some(Arc::new(object));
        (place.generation as u64) << 32 | index as u64
    }

    #[inline]
    pub(super) fn get(&self, id: u64) -> Result<Arc<T>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table
            .places
            .get(id as u32 as usize)
            .filter(|place| place.generation == (id >> 32) as u32)
            .and_then(|place| place.object.clone())
            .ok_or_else(|| Error::range(self.what, format!("{id:#x}"), "one that lives on this device"))
    }

    /// Takes an object out; `None` where it is gone already. It is dropped by the caller, outside the lock.
    pub(super) fn remove(&self, id: u64) -> Option<Arc<T>> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let index = id as u32;
        let place = table.places.get_mut(index as usize)?;
        if place.generation != (id >> 32) as u32 {
            return None;
        }
        let object = place.object.take()?;
        table.free.push(index);
        Some(object)
    }

    /// All live objects.
    pub(super) fn all(&self) -> Vec<Arc<T>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.places.iter().filter_map(|place| place.object.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_dies_with_its_object() {
        let slots = Slots::new("thing");
        let (a, b) = (slots.insert('a'), slots.insert('b'));
        assert_eq!((*slots.get(a).unwrap(), *slots.get(b).unwrap()), ('a', 'b'));
        assert_eq!(slots.remove(a).as_deref(), Some(&'a'));
        assert!(slots.remove(a).is_none());
        let c = slots.insert('c');
        assert_ne!(a, c);
        assert_eq!(*slots.get(c).unwrap(), 'c');
        let error = slots.get(a).unwrap_err().to_string();
        assert_eq!(error, "thing = 0x100000000; allowed: one that lives on this device");
        assert!(
            slots.remove(a).is_none(),
            "the old identifier must not take the new object"
        );
        assert!(slots.get(u64::MAX).is_err());
        assert_eq!(slots.all().len(), 2);
    }
}
