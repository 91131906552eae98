//! PTX as text: lexing, parsing to a syntax tree, and printing the tree back.
//!
//! The parser accepts what rustc/LLVM and nvcc emit for PTX ISA 6.0 to 9.x. It is total: any input gives a tree or
//! a [`ParseError`](crate::ParseError) with line and column, nesting is bounded, and memory is proportional to the
//! length of the text. What an opcode *means* is not looked at here, so a tree may hold instructions that the
//! machine does not model; those are refused when an entry that reaches them is prepared for launch.

pub mod ast;
mod lexer;
mod parser;
mod print;

pub(crate) use parser::parse;
