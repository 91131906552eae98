//! Labels, declarations and instructions of a body.

use super::*;

impl Lowering<'_> {
    /// A new label, not yet placed.
    pub(crate) fn new_label(&mut self) -> u32 {
        self.labels.push(NOWHERE);
        self.labels.len() as u32 - 1
    }

    pub(super) fn place_label(&mut self, label: u32) {
        self.labels[label as usize] = self.code.len() as u32;
    }

    /// The label of a name.
    pub(crate) fn label(&mut self, name: &str) -> Lowered<u32> {
        match self.symbol(name)? {
            Symbol::Label(label) => Ok(label),
            _ => self.refuse(&format!("{name} is not a label")),
        }
    }

    /// The labels of a `.branchtargets` list.
    pub(crate) fn branch_targets(&mut self, name: &str) -> Lowered<Vec<u32>> {
        match self.symbol(name)? {
            Symbol::Targets(names) => names.iter().map(|n| self.label(n)).collect(),
            _ => self.refuse(&format!("{name} is not a .branchtargets list")),
        }
    }

    /// Where `ret` goes; `None` in an entry.
    pub(crate) fn return_label(&self) -> Option<u32> {
        self.frames.last().and_then(|f| f.end)
    }

    pub(super) fn body(&mut self, body: &[Statement]) -> Lowered {
        self.scopes.enter();
        for statement in body {
            match statement {
                Statement::Label(name) => {
                    let label = self.new_label();
                    self.scopes.define(name, Symbol::Label(label));
                }
                Statement::Directive {
                    label: Some(name),
                    directive,
                } if &*directive.name == "branchtargets" => {
                    let names = directive.operands.iter().map(|o| o.to_string().into()).collect();
                    self.scopes.define(name, Symbol::Targets(names));
                }
                _ => {}
            }
        }
        for statement in body {
            match statement {
                Statement::Label(name) => {
                    let label = self.label(name)?;
                    self.place_label(label);
                }
                Statement::Instruction(instruction) => self.instruction(instruction)?,
                Statement::Block(inner) => self.body(inner)?,
                Statement::Variable(variable) => self.variable(variable)?,
                Statement::Location { file, line, .. } => self.source = Some((*file, *line)),
                Statement::Directive { directive, .. } => match &*directive.name {
                    "pragma" | "branchtargets" | "calltargets" => {}
                    other => {
                        let message = format!("the directive .{other} is not modelled");
                        return Err(LoadError {
                            position: directive.position,
                            message,
                        });
                    }
                },
                Statement::Prototype { .. } => {}
            }
        }
        self.scopes.leave();
        Ok(())
    }

    fn variable(&mut self, variable: &Variable) -> Lowered {
        self.position = variable.position;
        self.name = format!("declaration of {}", variable.declared[0].name);
        for declared in &variable.declared {
            let symbol = match variable.space {
                Space::Register => {
                    let ty = match Type::parse(&variable.ty) {
                        Some(ty) if ty != Type::B128 => ty,
                        _ => return self.refuse(&format!("registers of type .{} are not modelled", variable.ty)),
                    };
                    self.scopes
                        .registers(&declared.name, declared.count, ty, variable.vector);
                    continue;
                }
                Space::Shared => self.place_shared(variable, declared)?,
                Space::Local | Space::Parameter => {
                    let (size, align, unsized_array) = layout(variable, declared)?;
                    let at = u64::from(self.local_bytes).next_multiple_of(align);
                    if unsized_array || at + size > 512 << 10 {
                        return self.refuse("more than 512 KiB of local memory");
                    }
                    self.local_bytes = (at + size) as u32;
                    if variable.space == Space::Local {
                        Symbol::Local(at as u32)
                    } else {
                        Symbol::Parameter(LOCAL_PARAM | at)
                    }
                }
                Space::Global | Space::Constant => {
                    return self.refuse("module variables inside a body are not modelled");
                }
            };
            self.scopes.define(&declared.name, symbol);
        }
        Ok(())
    }

    fn instruction(&mut self, i: &Instruction) -> Lowered {
        self.position = i.position;
        self.name = i.full_name();
        self.kind = match self.kind_index.get(&self.name) {
            Some(&kind) => kind,
            None => {
                self.kinds.push(self.name.clone());
                self.kind_index.insert(self.name.clone(), self.kinds.len() as u32 - 1);
                self.kinds.len() as u32 - 1
            }
        };
        self.reads.clear();
        self.writes.clear();
        self.tests.clear();
        self.sets.clear();
        self.address = None;
        self.guard = match &i.guard {
            None => (NO_PREDICATE, false),
            Some(guard) => match self.symbol(&guard.register)? {
                Symbol::Predicate(p) => (p, guard.negated),
                _ => return self.refuse(&format!("{} is not a predicate", guard.register)),
            },
        };
        if &*i.opcode == "call" {
            self.call(i)
        } else {
            exec::lower(self, i)
        }
    }
}
