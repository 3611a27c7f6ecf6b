//! The tiers below RAM: a segment log on disk, and later remote stores, with everything behind a file-system trait so
//! that faults can be played. Nothing is here yet: KV lives in RAM only, and [`kvist_base::Residency`] is the border at
//! which slices that are still on their way will arrive.
#![forbid(unsafe_code)]
