/// Chunks that are about as likely to come back; higher ones are more likely to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(u8);

impl Class {
    pub const COUNT: usize = 20;
    /// Of chunks of which nothing is known.
    pub const UNKNOWN: Class = Class((Class::COUNT / 2) as u8);

    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// # Panics
    /// If there is no such class.
    pub fn from_index(index: usize) -> Class {
        assert!(index < Class::COUNT, "class {index} of {}", Class::COUNT);
        Class(index as u8)
    }
}
