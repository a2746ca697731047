//! One test per construct, and per way to get it wrong.

use super::parse;
use crate::ptx::ParseError;
use crate::ptx::ast::{Instruction, Module, Operand, Parameter, Space, Statement, Target, Type, Variable};

const HEAD: &str = ".version 9.0\n.target sm_80\n.address_size 64\n";

fn module(text: &str) -> Module {
    parse(&format!("{HEAD}{text}")).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(text: &str) -> ParseError {
    match parse(&format!("{HEAD}{text}")) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error,
    }
}

/// The body of a kernel of these statements.
fn body(text: &str) -> Vec<Statement> {
    let mut module = module(&format!(".entry k()\n{{\n{text}\n}}\n"));
    module.functions.pop().and_then(|function| function.body).expect("a body")
}

fn instruction(text: &str) -> Instruction {
    match body(text).pop() {
        Some(Statement::Instruction(instruction)) => instruction,
        other => panic!("{other:?}"),
    }
}

fn operands(text: &str) -> Vec<Operand> {
    instruction(&format!("op {text};")).operands
}

fn operand(text: &str) -> Operand {
    let mut operands = operands(text);
    assert_eq!(operands.len(), 1, "{text}");
    operands.remove(0)
}

fn variable(text: &str) -> Variable {
    let mut module = module(text);
    assert_eq!(module.variables.len(), 1, "{text}");
    module.variables.remove(0)
}

fn name(text: &str) -> Operand {
    Operand::Name(text.to_owned())
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn heads() {
    let module = module(".file 1 \"/a b/x.cu\", 1700000000, 42\n.file 2 \"y\"\n");
    assert_eq!(module.version, (9, 0));
    assert_eq!(module.target, Target { architecture: 80, suffix: None });
    assert_eq!(module.files, [(1, "/a b/x.cu".to_owned()), (2, "y".to_owned())]);

    let module = parse(".version 8.8 .target sm_90a, debug .address_size 64").expect("a module");
    assert_eq!((module.version, module.target.architecture, module.target.suffix), ((8, 8), 90, Some('a')));
    // Neither the address size nor the suffix of a family is a must.
    let module = parse("// made by hand\n.version 9.12\n.target texmode_independent, sm_100f\n").expect("a module");
    assert_eq!((module.version, module.target.to_string()), ((9, 12), "sm_100f".to_owned()));
}

#[test]
fn versions_and_targets_that_are_not_supported() {
    let error = |text: &str| parse(text).expect_err(text);
    for (version, major, minor) in [("7.8", 7, 8), ("10.0", 10, 0), ("6.5", 6, 5)] {
        let text = format!("\n.version {version}\n.target sm_80\n");
        assert_eq!(error(&text), ParseError::UnsupportedVersion { line: 2, major, minor });
    }
    for target in ["sm_75", "sm_80x", "sm_", "sm_99999999999", "compute_80", "map_f64_to_f32"] {
        let text = format!(".version 9.0\n.target {target}\n");
        assert_eq!(error(&text), ParseError::UnsupportedTarget { line: 2, target: target.to_owned() });
    }
    for text in ["", ".target sm_80", ".version 9", ".version 9.0", ".version 9.0 .target debug", ".version 9.0 x"] {
        assert!(matches!(error(text), ParseError::Unexpected { line: 1, .. }), "{text}");
    }
    let text = ".version 9.0 .target sm_80 .address_size 32";
    assert!(matches!(error(text), ParseError::Unsupported { .. }));
}

#[test]
fn an_error_quotes_its_line() {
    let error = refused(".entry k()\n{\n\tadd.s32 %r1, %r2 %r3; // sum\n}\n");
    let expected = ParseError::Unexpected {
        line: 6,
        found: "`%r3`".to_owned(),
        expected: "`,` or `;`".to_owned(),
        text: "add.s32 %r1, %r2 %r3; // sum".to_owned(),
    };
    assert_eq!(error, expected);
    assert_eq!(
        error.to_string(),
        "PTX line 6: found `%r3` where `,` or `;` was expected, in `add.s32 %r1, %r2 %r3; // sum`"
    );
    assert!(refused(".entry k() { ret;").to_string().contains("the end of the text"));
    // What is quoted of a line that never ends is short, and cut between characters.
    assert!(refused(&format!("é{}", "é".repeat(100_000))).to_string().len() < 1000);
}

#[test]
fn variables() {
    let plain = variable(".visible .global .align 8 .u32 x = 5;");
    assert_eq!((plain.name.as_str(), plain.space, plain.align, plain.size), ("x", Space::Global, 8, Some(4)));
    assert_eq!((plain.initial, plain.external, plain.line), (vec![5, 0, 0, 0], false, 4));

    let natural = variable(".const .f64 x[3];");
    assert_eq!((natural.space, natural.align, natural.size), (Space::Constant, 8, Some(24)));
    assert!(natural.initial.is_empty());
    let vector = variable(".global .v4 .f32 x[2];");
    assert_eq!((vector.align, vector.size), (16, Some(32)));
    let grid = variable(".shared .b16 x[2][3][5];");
    assert_eq!((grid.space, grid.align, grid.size), (Space::Shared, 2, Some(60)));
    let dynamic = variable(".extern .shared .align 16 .b8 x[];");
    assert_eq!((dynamic.align, dynamic.size, dynamic.external), (16, None, true));
    assert_eq!(variable(".extern .shared .b8 x[0];").size, None);
    assert_eq!(variable(".global .b8 x[2 * (3 + 1)];").size, Some(8));
    assert_eq!(variable(".weak .global .attribute(.managed) .align 4 .u32 x;").align, 4);
    assert_eq!(variable(".global .attribute(.unified(19, 95)) .u32 x;").size, Some(4));
    assert_eq!(variable(".common .global .b128 x;").size, Some(16));

    let two = module(".global .u16 a = 1, b[2] = {2, 3};").variables;
    assert_eq!((two[0].initial.as_slice(), two[1].initial.as_slice()), ([1, 0].as_slice(), [2, 0, 3, 0].as_slice()));
}

#[test]
fn initial_values() {
    let bytes = |text: &str| variable(text).initial;
    assert_eq!(bytes(".global .b8 x[5] = {1, 0x2, 03, 0b100};"), [1, 2, 3, 4]);
    assert_eq!(bytes(".global .s16 x[2] = {-1, -2};"), [255, 255, 254, 255]);
    assert_eq!(bytes(".global .f32 x = 1.5;"), 1.5_f32.to_le_bytes());
    assert_eq!(bytes(".global .f32 x = 0f3FC00000;"), 1.5_f32.to_le_bytes());
    assert_eq!(bytes(".global .f32 x = 0d3FF8000000000000;"), 1.5_f32.to_le_bytes());
    assert_eq!(bytes(".global .f32 x = -3;"), (-3.0_f32).to_le_bytes());
    // A signalling NaN is kept bit for bit.
    assert_eq!(bytes(".global .f32 x = 0f7F800001;"), 0x7F80_0001_u32.to_le_bytes());
    assert_eq!(bytes(".global .b32 x = 0f7F800001;"), 0x7F80_0001_u32.to_le_bytes());
    assert_eq!(bytes(".global .f64 x = 0f3FC00000;"), 1.5_f64.to_le_bytes());
    assert_eq!(bytes(".global .b64 x = 0d3FF8000000000000;"), 1.5_f64.to_le_bytes());
    assert_eq!(bytes(".global .f16 x = 1.5;"), 0x3E00_u16.to_le_bytes());
    assert_eq!(bytes(".global .u64 x = 0xffffffffffffffff;"), [255; 8]);
    // ISA, "Constant Expressions".
    assert_eq!(bytes(".global .u32 x = (1 << 4) | ~0xFFFFFFF0 & 3;"), [19, 0, 0, 0]);

    // Rows that are not full are filled with zeros.
    assert_eq!(bytes(".global .b8 x[2][3] = {{1}, {2, 3}};"), [1, 0, 0, 2, 3]);
    assert_eq!(bytes(".global .b8 x[2][3] = {{1, 2, 3}, 4, 5};"), [1, 2, 3, 4, 5]);
    assert_eq!(bytes(".global .v2 .b8 x[2] = {{1, 2}, {3, 4}};"), [1, 2, 3, 4]);
    assert_eq!(bytes(".global .v4 .b8 x = {1, 2, 3, 4};"), [1, 2, 3, 4]);
    let open = variable(".global .b8 x[][3] = {{1}, {2}};");
    assert_eq!((open.size, open.initial.as_slice()), (Some(6), [1, 0, 0, 2, 0, 0].as_slice()));
    assert_eq!(variable(".global .u16 x[] = {1, 2, 3};").size, Some(6));
    assert_eq!(variable(".global .u16 x[2] = {};").size, Some(4));
}

#[test]
fn initial_addresses() {
    let x = variable(".global .u64 x[5] = {a, a+8, generic(b), generic(b)+-4, 7};");
    let at = |at: usize, name: &str, offset: i64| (at, name.to_owned(), offset);
    assert_eq!(x.addresses, [at(0, "a", 0), at(8, "a", 8), at(16, "b", 0), at(24, "b", -4)]);
    assert_eq!((x.initial.len(), x.initial[32]), (40, 7));

    // As nvcc writes a pointer in a packed structure.
    let masks: Vec<String> = (0..8).map(|byte| format!("{:#X}(generic(g)+4)", 0xFF_u64 << (8 * byte))).collect();
    let text = |masks: &[String]| format!(".global .align 1 .u8 x[10] = {{1, {}, 2}};", masks.join(", "));
    let x = variable(&text(&masks));
    assert_eq!(x.addresses, [at(1, "g", 4)]);
    assert_eq!((x.initial[0], x.initial[9]), (1, 2));
    assert!(matches!(refused(&text(&masks[..7])), ParseError::Unsupported { .. }));
    let mut turned = masks;
    turned.swap(0, 1);
    assert!(matches!(refused(&text(&turned)), ParseError::Unsupported { .. }));
    assert!(matches!(refused(".global .u32 x = a;"), ParseError::Unsupported { .. }));
    assert!(matches!(refused(".global .u32 x = 0xFF(a);"), ParseError::Unsupported { .. }));
}

#[test]
fn variables_that_cannot_be() {
    let unexpected = [
        ".global x;",
        ".global .u32;",
        ".global .u32 x",
        ".global .u33 x;",
        ".global .align 3 .u32 x;",
        ".global .align 0 .u32 x;",
        ".global .align 2097152 .u32 x;",
        ".global .u32 x[-1];",
        ".global .u32 x[1.0];",
        ".global .u32 x[2][];",
        ".global .u32 x[1] = {1, 2};",
        ".global .u32 x[1] = {{1}};",
        ".global .u32 x[2][2] = {1, {2}};",
        ".global .u32 x[1] = {1;",
        ".global .u32 x = {1};",
        ".global .u32 x[0] = {1};",
        ".global .u32 x = 1.5;",
        ".global .u32 x = 1 / 0;",
        ".param .u32 x;",
        ".reg .u32 x;",
        "x;",
    ];
    for text in unexpected {
        assert!(matches!(refused(text), ParseError::Unexpected { line: 4, .. }), "{text}: {}", refused(text));
    }
    let unsupported = [
        ".global .texref x;",
        ".global .surfref x;",
        ".global .samplerref x;",
        ".shared .u32 x = 1;",
        ".global .b128 x=1;",
    ];
    for text in unsupported {
        assert!(matches!(refused(text), ParseError::Unsupported { line: 4, .. }), "{text}");
    }
}

#[test]
fn numbers_do_not_drive_allocation() {
    let cases = [
        ".global .u32 x[0xffffffffffffffff];".to_owned(),
        ".global .u32 x[0x100000][0x100000][0x100000][0x100000];".to_owned(),
        ".shared .u8 x[0x10000000001];".to_owned(),
        // The padding of rows.
        ".global .b8 x[2][0x7fffffffff] = {{1}, {2}};".to_owned(),
        ".global .b8 x[][0xffffffffffffffff] = {{1}, {2}};".to_owned(),
        ".global .b8 x[][0x7fffffffff] = {{}};".to_owned(),
        format!(".global .b8 x{};", "[1]".repeat(1000)),
        ".entry k() { .reg .b32 %r<1048577>; }".to_owned(),
        ".entry k() { .reg .b32 %a<600000>; .reg .b64 %b<600000>; }".to_owned(),
        ".entry k() { .reg .b32 %r<18446744073709551615>; }".to_owned(),
    ];
    for text in &cases {
        assert!(matches!(refused(text), ParseError::Excessive { line: 4, .. }), "{text}: {}", refused(text));
    }
}

#[test]
fn nesting_does_not_overflow_the_stack() {
    let deep = |open: &str| refused(&format!(".entry k() {{ {}", open.repeat(200_000)));
    for open in ["{", "op (", "op -", "op [-", "op 1?", "{ ret; "] {
        let error = deep(open);
        assert!(!error.to_string().is_empty(), "{open}: {error}");
    }
    assert!(matches!(deep("{"), ParseError::Excessive { .. }));
    assert!(matches!(refused(&format!(".global .u32 x[] = {}", "{".repeat(200_000))), ParseError::Unexpected { .. }));
}

#[test]
fn kernels() {
    let module = module(
        ".visible .entry k(\n .param .u64 .ptr .global .align 16 a,\n .param .align 4 .b8 b[12],\n .param .f32 c,\n \
         .param .u64 .ptr .align 1 d,\n .param .u64 .ptr e)\n.maxntid 128, 2\n.minnctapersm 3\n.maxnreg 64\n\
         .reqnctapercluster 2, 1, 1\n.maxclusterrank 8\n.explicitcluster\n.maxnctapersm 4\n.pragma \"nounroll\";\n{\nret;\n}",
    );
    let k = &module.functions[0];
    assert_eq!((k.name.as_str(), k.is_entry, k.line), ("k", true, 4));
    let shapes: Vec<_> = k.parameters.iter().map(|p| (p.name.as_str(), p.size, p.align, p.register)).collect();
    assert_eq!(
        shapes,
        [("a", 8, 8, None), ("b", 12, 4, None), ("c", 4, 4, None), ("d", 8, 8, None), ("e", 8, 8, None)]
    );
    assert_eq!((k.max_threads, k.required_threads), (Some([128, 2, 1]), None));
    assert_eq!((k.min_blocks, k.cluster), (Some(3), Some([2, 1, 1])));
    assert_eq!(k.body.as_ref().map(Vec::len), Some(1));

    let bare = module_of(".entry k .reqntid 8, 4, 2 { }");
    assert_eq!((bare.required_threads, bare.body), (Some([8, 4, 2]), Some(vec![])));
    assert!(matches!(refused(".entry k(.param .u64 .ptr .texref t) {}"), ParseError::Unsupported { .. }));
    assert!(matches!(refused(".entry k() .maxntid 1, 2, 3, 4 {}"), ParseError::Unexpected { .. }));
    assert!(matches!(refused(".entry k() .maxntid 4294967296 {}"), ParseError::Unexpected { .. }));
    assert!(matches!(refused(".entry k() .nonsense {}"), ParseError::Unexpected { .. }));
    assert!(matches!(refused(".entry k(.global .u32 x) {}"), ParseError::Unexpected { .. }));
}

fn module_of(text: &str) -> crate::ptx::ast::Function {
    module(text).functions.remove(0)
}

#[test]
fn functions() {
    let f = module_of(".extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b)\n;");
    assert_eq!((f.is_entry, f.body, f.returns.len(), f.parameters.len()), (false, None, 1, 2));
    let f = module_of(".weak .func (.reg .b32 %r) f (.reg .f64 %x, .param .align 8 .b8 y[16]) { ret; }");
    let register = Parameter { name: "%r".to_owned(), size: 4, align: 4, register: Some(Type::B32) };
    assert_eq!(f.returns, [register]);
    assert_eq!(f.parameters[0].register, Some(Type::F64));
    assert_eq!((f.parameters[1].size, f.parameters[1].align, f.parameters[1].register), (16, 8, None));
    let f = module_of(".func .attribute(.unified(1, 2)) fail() .noreturn { trap; }");
    assert!(f.parameters.is_empty() && f.returns.is_empty() && f.body.is_some());
    assert_eq!(module_of(".func .noreturn () f() .abi_preserve 4;").name, "f");
    assert!(matches!(refused(".func f(.param .b8 rest[]);"), ParseError::Unsupported { .. }));
}

#[test]
fn aliases_are_replaced() {
    let module = module(
        ".func g();\n.visible .func f() { ret; }\n.alias g, f;\n.global .u64 p = g;\n.entry k() { { call g; } call h; }",
    );
    let names: Vec<&str> = module.functions.iter().map(|function| function.name.as_str()).collect();
    assert_eq!(names, ["f", "k"]);
    assert_eq!(module.variables[0].addresses[0].1, "f");
    let body = module.functions[1].body.as_ref().expect("a body");
    let Statement::Scope(inner) = &body[0] else { panic!("{body:?}") };
    assert!(matches!(&inner[0], Statement::Instruction(call) if call.operands == [name("f")]));
    assert!(matches!(&body[1], Statement::Instruction(call) if call.operands == [name("h")]));
}

#[test]
fn registers() {
    assert_eq!(
        body(".reg .b32 %r<3>, %x; .reg .pred p; .reg .f16x2 %h<0>;"),
        [
            Statement::Registers(Type::B32, names(&["%r0", "%r1", "%r2", "%x"])),
            Statement::Registers(Type::Pred, names(&["p"])),
            Statement::Registers(Type::F16x2, vec![]),
        ]
    );
    for text in [".reg .v2 .f32 %v;", ".reg .v4 .b32 %v<2>;"] {
        assert!(matches!(refused(&format!(".entry k() {{ {text} }}")), ParseError::Unsupported { .. }));
    }
    for text in [".reg %r;", ".reg .b32;", ".reg .b32 %r<;", ".reg .b32 %r<1;", ".reg .b32 %r<-1>;", ".reg .b1 %r;"] {
        let error = refused(&format!(".entry k() {{ {text} }}"));
        assert!(matches!(error, ParseError::Unexpected { .. }), "{text}: {error}");
    }
}

#[test]
fn statements() {
    let list = body(
        ".local .align 8 .b8 __local_depot0[48];\n.loc 1 12 3\n.loc 2 7 1, function_name $L__info0+4, inlined_at 1 12 3\n\
         .pragma \"used_bytes_mask 15\";\n$L__BB0_1: ret;\n;\n{ .param .b32 p0; exit; }\nts: .branchtargets a, $b;\n\
         prototype_0 : .callprototype (.param .b32 _) _ (.param .b64 _, .param .b32 _);\nfs: .calltargets f, g;\n\
         .shared .align 16 .b8 s[64];",
    );
    let depot = |statement: &Statement| match statement {
        Statement::Variable(v) => (v.name.clone(), v.space, v.size),
        other => panic!("{other:?}"),
    };
    assert_eq!(depot(&list[0]), ("__local_depot0".to_owned(), Space::Local, Some(48)));
    assert_eq!(list[1], Statement::Location { file: 1, line: 12, inlined_at: None });
    assert_eq!(list[2], Statement::Location { file: 2, line: 7, inlined_at: Some((1, 12)) });
    assert_eq!(list[3], Statement::Label("$L__BB0_1".to_owned()));
    assert!(matches!(&list[4], Statement::Instruction(ret) if ret.opcode == "ret" && ret.line == 10));
    let Statement::Scope(inner) = &list[5] else { panic!("{:?}", list[5]) };
    assert_eq!(depot(&inner[0]), ("p0".to_owned(), Space::Parameter, Some(4)));
    assert_eq!(list[6], Statement::BranchTargets("ts".to_owned(), names(&["a", "$b"])));
    assert_eq!(depot(&list[7]), ("s".to_owned(), Space::Shared, Some(64)));
    assert_eq!(list.len(), 8);

    let wrong = [
        ".loc 1 2",
        ".loc 1 2 3, nowhere 4",
        ".loc -1 2 3",
        ".pragma nounroll;",
        ".entry j() {}",
        "l: .branchtargets;",
        "l: .branchtargets a",
        "p: .callprototype _ ()",
        "]",
        ".visible 3;",
    ];
    for text in wrong {
        let error = refused(&format!(".entry k() {{ {text} }}"));
        assert!(matches!(error, ParseError::Unexpected { .. }), "{text}: {error}");
    }
}

#[test]
fn sections_are_skipped() {
    let module = module(
        ".section .debug_info\n{\n.b32 105\n.b8 2\n.b64 .debug_abbrev\n.b64 $L__a-$L__b\n.b8 1,2\n$L__c: { }\n}\n\
         .global .u32 x;\n.section .debug_loc { }",
    );
    assert_eq!(module.variables.len(), 1);
    assert!(matches!(refused(".section .debug_str { {} "), ParseError::Unexpected { .. }));
    assert!(matches!(refused(".section .debug_str ;"), ParseError::Unexpected { .. }));
}

#[test]
fn instructions() {
    let plain = instruction("@!%p1 ld.global.L1::no_allocate.L2::128B.v4.u32 {%r1, _, %r3, %r4}, [%rd1+16];");
    assert_eq!(plain.guard, Some(("%p1".to_owned(), true)));
    assert_eq!(plain.opcode, "ld");
    assert_eq!(plain.modifiers, names(&["global", "L1::no_allocate", "L2::128B", "v4", "u32"]));
    assert_eq!(plain.line, 6);
    assert_eq!(
        plain.operands,
        [
            Operand::Vector(vec![name("%r1"), Operand::Sink, name("%r3"), name("%r4")]),
            Operand::Address(Some("%rd1".to_owned()), 16)
        ]
    );
    assert_eq!(instruction("@p bra l;").guard, Some(("p".to_owned(), false)));
    assert!(instruction("bar.warp.sync 0xffffffff;").guard.is_none());
    let bulk = instruction(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, -3}], [%r4];",
    );
    assert_eq!(bulk.mnemonic(), "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes");
    let map = Box::new(Operand::Address(Some("%rd1".to_owned()), 0));
    assert_eq!(bulk.operands[1], Operand::Tensor(map, vec![name("%r2"), Operand::Integer(-3_i64 as u64)]));
    // Comments and line ends may stand anywhere; an instruction has the line where it begins.
    let spread = instruction("\n@%p // if\n add /* wrapping */ .s32\n %r1\n,%r2,1;");
    assert_eq!((spread.line, spread.operands.len()), (7, 3));
    for text in ["add %r1,;", "add %r1", "@ add;", "@%p;", "add.;", "add %r1 %r2;", ".s32 add;", "add , %r1;", "3;"] {
        let error = refused(&format!(".entry k() {{ {text} }}"));
        assert!(matches!(error, ParseError::Unexpected { .. }), "{text}: {error}");
    }
}

#[test]
fn calls() {
    let of = |text: &str| instruction(text).operands;
    let list = |items: &[&str]| Operand::List(items.iter().map(|&item| name(item)).collect());
    assert_eq!(of("call.uni (r), f, (a, b);"), [list(&["r"]), name("f"), list(&["a", "b"])]);
    assert_eq!(of("call f, (a);"), [name("f"), list(&["a"])]);
    assert_eq!(of("call f;"), [name("f")]);
    assert_eq!(
        of("call (r),\n%rd1,\n(\na\n)\n, prototype_2;"),
        [list(&["r"]), name("%rd1"), list(&["a"]), name("prototype_2")]
    );
    assert_eq!(of("call f, ();"), [name("f"), Operand::List(vec![])]);
    assert_eq!(
        of("call (_), f, (1, -0f3F800000);"),
        [
            Operand::List(vec![Operand::Sink]),
            name("f"),
            Operand::List(vec![Operand::Integer(1), Operand::Single(0xBF80_0000)])
        ]
    );
}

#[test]
fn forms_of_operands() {
    let pair = |a: &str, b: &str| Operand::Pair(a.to_owned(), b.to_owned());
    let at = |name: &str, offset: i64| Operand::Address(Some(name.to_owned()), offset);
    let cases = [
        ("%r1", name("%r1")),
        ("%tid.x", name("%tid.x")),
        ("%envreg31", name("%envreg31")),
        ("%r1.b0", name("%r1.b0")),
        ("$L__BB0_1", name("$L__BB0_1")),
        ("_Z1kv", name("_Z1kv")),
        ("_", Operand::Sink),
        ("0", Operand::Integer(0)),
        ("-1", Operand::Integer(u64::MAX)),
        ("0xFFFFFFFF", Operand::Integer(0xFFFF_FFFF)),
        ("0777", Operand::Integer(0o777)),
        ("0b11", Operand::Integer(3)),
        ("12U", Operand::Integer(12)),
        ("-9223372036854775808", Operand::Integer(1 << 63)),
        ("(1 + 2) * 3", Operand::Integer(9)),
        ("~0", Operand::Integer(u64::MAX)),
        ("!0", Operand::Integer(1)),
        ("WARP_SZ", Operand::Integer(32)),
        ("WARP_SZ - 1", Operand::Integer(31)),
        ("!WARP_SZ", Operand::Integer(0)),
        ("0f3F800000", Operand::Single(0x3F80_0000)),
        ("-0f3F800000", Operand::Single(0xBF80_0000)),
        ("0dBFF0000000000000", Operand::Double(0xBFF0_0000_0000_0000)),
        ("2.5", Operand::Double(2.5_f64.to_bits())),
        ("-1e3", Operand::Double((-1e3_f64).to_bits())),
        ("!%p1", Operand::Not("%p1".to_owned())),
        ("%p1|%p2", pair("%p1", "%p2")),
        ("%p1 | _", pair("%p1", "_")),
        ("_|%p2", pair("_", "%p2")),
        ("name+4", Operand::Offset("name".to_owned(), 4)),
        ("name-4", Operand::Offset("name".to_owned(), -4)),
        ("[%rd1]", at("%rd1", 0)),
        ("[%rd1+4]", at("%rd1", 4)),
        ("[%rd1+-4]", at("%rd1", -4)),
        ("[%rd1 + -4]", at("%rd1", -4)),
        ("[%rd1-4]", at("%rd1", -4)),
        ("[name+2*8+1]", at("name", 17)),
        ("[name-2+8]", at("name", 6)),
        ("[256]", Operand::Address(None, 256)),
        ("[-8]", Operand::Address(None, -8)),
        ("[0xffffffffffffffff]", Operand::Address(None, -1)),
        ("{}", Operand::Vector(vec![])),
        ("{%a, 1, _}", Operand::Vector(vec![name("%a"), Operand::Integer(1), Operand::Sink])),
        ("[m, {}]", Operand::Tensor(Box::new(at("m", 0)), vec![])),
        ("[m+64, {%x, 1}]", Operand::Tensor(Box::new(at("m", 64)), vec![name("%x"), Operand::Integer(1)])),
    ];
    for (text, expected) in cases {
        assert_eq!(operand(text), expected, "{text}");
    }
    assert_eq!(operands("%r1|%p1, %r2, 0x1f, -1").len(), 4);
    let wrong = [
        "name[3]",
        "[%rd1",
        "[%rd1]]",
        "[]",
        "[1.5]",
        "[%rd1+%rd2]",
        "[%rd1, %r1]",
        "[m, {%x}, 3]",
        "{%a, }",
        "{{%a}}",
        "{[%a]}",
        "(%a)",
        "%p1|",
        "!",
        "!!",
        "1 2",
        "0x",
        "0f12",
        "12abc",
        "18446744073709551616",
        "name+",
        "name+1.5",
        "\"text\"",
        "1, .u32",
        "1/0",
    ];
    for text in wrong {
        let error = refused(&format!(".entry k() {{ op {text}; }}"));
        assert!(matches!(error, ParseError::Unexpected { line: 4, .. }), "{text}: {error}");
    }
}
