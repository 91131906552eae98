//! The page pool against a naive model, against the bugs of others, and its tables.

mod bugs;
mod machine;
mod model;
mod prefix;
mod tables;
