//! The syntax tree.

/// A place in the source text; line and column count from 1, and 0 means unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// Line, from 1.
    pub line: u32,
    /// Column in bytes, from 1.
    pub column: u32,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A name as written, with its `%` or `$`.
pub type Name = Box<str>;

/// A whole PTX file.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// `.version`, major and minor.
    pub version: (u32, u32),
    /// `.target` and its options.
    pub target: Vec<Name>,
    /// `.address_size`, 32 or 64.
    pub address_size: u32,
    /// Everything else, in order.
    pub items: Vec<Item>,
}

/// Something at module level.
#[derive(Clone, Debug)]
pub enum Item {
    /// `.global`, `.const`, `.shared` or other module variable.
    Variable(Variable),
    /// `.entry` or `.func`, with or without a body. Boxed because it is large.
    Function(Box<Function>),
    /// `.file index "name"`.
    File {
        /// The index that `.loc` uses.
        index: u32,
        /// The file's name.
        name: Name,
        /// Time stamp and size, if written.
        extra: Vec<u64>,
    },
    /// `.section name { … }`: debug sections, kept as text.
    Section {
        /// The section's name.
        name: Name,
        /// What stands between the braces.
        text: Name,
    },
    /// A directive kept as it is, such as `.pragma "…"` or `.alias a, b`.
    Directive(Directive),
}

/// A directive that only carries names, numbers and strings.
#[derive(Clone, Debug)]
pub struct Directive {
    /// Where it stands.
    pub position: Position,
    /// Its name without the dot.
    pub name: Name,
    /// Its operands.
    pub operands: Vec<Operand>,
}

/// A state space of a declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// `.reg`
    Register,
    /// `.global`
    Global,
    /// `.shared`
    Shared,
    /// `.const`
    Constant,
    /// `.local`
    Local,
    /// `.param`
    Parameter,
}

impl Space {
    /// The directive's name without the dot.
    pub fn name(self) -> &'static str {
        match self {
            Space::Register => "reg",
            Space::Global => "global",
            Space::Shared => "shared",
            Space::Constant => "const",
            Space::Local => "local",
            Space::Parameter => "param",
        }
    }
}

/// A declaration of one or more variables or registers.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Where it stands.
    pub position: Position,
    /// `extern`, `visible`, `weak` or `common`.
    pub linkage: Option<Name>,
    /// The state space.
    pub space: Space,
    /// `.align`, in bytes.
    pub align: Option<u64>,
    /// Elements of the vector type: 1, 2 or 4.
    pub vector: u8,
    /// The element type, such as `b32`.
    pub ty: Name,
    /// `.ptr` and what follows it, as in `.ptr .global .align 16`.
    pub pointer: Option<Vec<Name>>,
    /// `.attribute(.managed)` and the like, as written.
    pub attributes: Vec<Name>,
    /// What is declared.
    pub declared: Vec<Declarator>,
}

/// One declared name.
#[derive(Clone, Debug)]
pub struct Declarator {
    /// The name; empty for a parameter without one.
    pub name: Name,
    /// `%r<n>`: the names `%r0` to `%r(n-1)`.
    pub count: Option<u32>,
    /// Array dimensions; `None` is `[]`.
    pub dimensions: Vec<Option<u64>>,
    /// `= …`
    pub initial: Option<Initial>,
}

/// An initialiser.
#[derive(Clone, Debug)]
pub enum Initial {
    /// A number.
    Value(Immediate),
    /// An address: the symbol's, plus an offset, through `generic(…)` if so written.
    Address {
        /// The symbol.
        symbol: Name,
        /// Added to its address.
        offset: i64,
        /// Written as `generic(symbol)`.
        generic: bool,
        /// `mask(symbol)`: the byte of the address that the mask selects.
        mask: Option<u64>,
    },
    /// `{ …, … }`
    List(Vec<Initial>),
}

/// A kernel or a device function.
#[derive(Clone, Debug)]
pub struct Function {
    /// Where it stands.
    pub position: Position,
    /// `extern`, `visible` or `weak`.
    pub linkage: Option<Name>,
    /// Whether it is an `.entry`.
    pub entry: bool,
    /// Its name.
    pub name: Name,
    /// What it returns (`.func` only).
    pub returns: Vec<Variable>,
    /// Its parameters.
    pub parameters: Vec<Variable>,
    /// Performance and other directives before the body: `.maxntid 128, 1, 1`, `.noreturn`.
    pub directives: Vec<Directive>,
    /// The body; `None` for a declaration.
    pub body: Option<Vec<Statement>>,
}

/// Something in a body.
#[derive(Clone, Debug)]
pub enum Statement {
    /// `label:`
    Label(Name),
    /// An instruction.
    Instruction(Instruction),
    /// `{ … }`, a scope of its own.
    Block(Vec<Statement>),
    /// A declaration of registers or variables.
    Variable(Box<Variable>),
    /// `.loc file line column …`.
    Location {
        /// The `.file` index.
        file: u32,
        /// The source line.
        line: u32,
        /// The source column.
        column: u32,
        /// `function_name` and `inlined_at`, as written.
        extra: Name,
    },
    /// `label: .branchtargets a, b;` and the like.
    Directive {
        /// The label before it.
        label: Option<Name>,
        /// The directive.
        directive: Directive,
    },
    /// `label: .callprototype …;` as text.
    Prototype {
        /// Its label.
        label: Name,
        /// What follows `.callprototype`, as written.
        text: Name,
    },
}

/// A predicate before an instruction.
#[derive(Clone, Debug)]
pub struct Guard {
    /// `@!p`
    pub negated: bool,
    /// The predicate register.
    pub register: Name,
}

/// One instruction as written.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Where it stands.
    pub position: Position,
    /// `@p` before it.
    pub guard: Option<Guard>,
    /// The opcode, such as `ld`.
    pub opcode: Name,
    /// The modifiers without their dots, such as `global`, `f32`.
    pub modifiers: Vec<Name>,
    /// The operands.
    pub operands: Vec<Operand>,
}

impl Instruction {
    /// Opcode and modifiers as written.
    pub fn full_name(&self) -> String {
        let mut name = self.opcode.to_string();
        for modifier in &self.modifiers {
            name.push('.');
            name.push_str(modifier);
        }
        name
    }
}

/// A literal number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Immediate {
    /// An integer in two's complement.
    Integer(u64),
    /// Single-precision bits.
    Single(u32),
    /// Double-precision bits.
    Double(u64),
}

/// An operand.
#[derive(Clone, Debug)]
pub enum Operand {
    /// A register, variable, function or label.
    Name(Name),
    /// `%v.x`
    Component(Name, Name),
    /// A number.
    Immediate(Immediate),
    /// `symbol+4` outside brackets.
    Offset(Name, i64),
    /// `!%p`
    Not(Name),
    /// `%d|%p`
    Pair(Box<Operand>, Box<Operand>),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `(a, b)` of a call.
    Tuple(Vec<Operand>),
    /// `[base+offset]` or `[base, {coordinates}]`.
    Address {
        /// A register, a variable or a number.
        base: Box<Operand>,
        /// Added to the base.
        offset: i64,
        /// What follows the comma.
        coordinates: Option<Box<Operand>>,
    },
    /// A string.
    Text(Name),
}
