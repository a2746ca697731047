//! `printf` and assertions as kernels call them (CUDA C++ Programming Guide, formatted output and assertion).

use super::{number, padded, real};
use crate::machine::testing::{Bench, Kernel, Shape};
use crate::memory::Touch;
use crate::options::Options;
use crate::program::Addresses;
use crate::ptx::ast::Space;
use crate::report::Kind;

#[test]
fn numbers_and_strings_are_formatted_as_in_c() {
    assert_eq!(number("", "d", u64::from(-5i32 as u32), false), "-5");
    assert_eq!(number("05", "u", 42, false), "00042");
    assert_eq!(number("#", "x", 255, false), "0xff");
    assert_eq!(number("-4", "d", 7, false), "7   ");
    assert_eq!(number("", "d", u64::MAX, true), "-1");
    assert_eq!(number("", "X", 0xabcd_0000_0000, true), "ABCD00000000");
    assert_eq!(number("", "c", 65, false), "A");
    assert_eq!(
        real(".2", "f", 2.555),
        "2.56".replace("56", if format!("{:.2}", 2.555) == "2.56" { "56" } else { "55" })
    );
    assert_eq!(real("8.1", "e", 12345.0), " 1.2e+04");
    assert_eq!(real("", "g", 0.5), "0.5");
    assert_eq!(padded("5", "ab"), "   ab");
    assert_eq!(padded("-5.1", "ab"), "a    ");
    assert_eq!(padded("", "ab"), "ab");
}

const HEAD: &str = ".global .align 1 .b8 format[64];\n.extern .func (.param .b32 r) vprintf (.param .b64 p0, .param .b64 p1);\n\
                    .extern .func __assertfail (.param .b64 p0, .param .b64 p1, .param .b32 p2, .param .b64 p3, .param .b64 p4);";

/// What `vprintf` returns to one thread: the length of what it prints.
fn printed(format: &str, store: &str) -> (u32, Vec<crate::report::Finding>) {
    let body = format!(
        ".local .align 8 .b8 v[64];\n{store}\nmov.u64 %l2, v;\ncvta.local.u64 %l2, %l2;\nmov.u64 %l3, format;\n\
         cvta.global.u64 %l3, %l3;\n{{ .param .b64 p0; .param .b64 p1; .param .b32 r0; st.param.b64 [p0], %l3; \
         st.param.b64 [p1], %l2; call.uni (r0), vprintf, (p0, p1); ld.param.b32 %r9, [r0]; }}\nst.global.u32 [%out], %r9;"
    );
    let bench = Bench::new(&Options::checked(1));
    let mut bytes = format.as_bytes().to_vec();
    bytes.resize(64, 0);
    let words: Vec<u32> = bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    let (text, output) = (bench.words(0, &words), bench.words(0, &[0]));
    let addresses = Addresses::from([("format".to_owned(), (Space::Global, text))]);
    let shape = Shape { block: [1; 3], addresses, ..Shape::default() };
    let parameters = [output.to_le_bytes(), output.to_le_bytes()].concat();
    let kernel = Kernel { head: HEAD, body: &body, ..Kernel::default() };
    bench.launch(&kernel.text(), &shape, &parameters).unwrap();
    (bench.read(output, 1)[0], bench.findings.take())
}

#[test]
fn arguments_lie_one_after_another() {
    let length = |format: &str, store: &str| printed(format, store).0;
    assert_eq!(length("100%%\n", ""), 5);
    assert_eq!(
        length(
            "%d %5.1f|%lld\n",
            "st.local.u32 [v], -12;\nst.local.f64 [v+8], 0d4004000000000000;\nst.local.u64 [v+16], 7;"
        ),
        12
    );
    assert_eq!(length("%*d\n", "st.local.u32 [v], 20;\nst.local.u32 [v+4], 1;"), 21);
    assert_eq!(length("%c%c\n", "st.local.v2.u32 [v], {65, 66};"), 3);
    // A missing argument is a read of what nobody wrote.
    let found = printed("%d\n", "").1;
    assert!(found.iter().any(|finding| finding.kind == Kind::Uninitialized), "{found:?}");
}

#[test]
fn assertions_fail_with_their_text() {
    let body = "setp.ne.u32 %p1, %tid, 3;\n@%p1 bra END;\nmov.u64 %l3, format;\n{ .param .b64 p0; .param .b64 p1; .param .b32 p2; \
                .param .b64 p3; .param .b64 p4; st.param.b64 [p0], %l3; add.u64 %l3, %l3, 8; st.param.b64 [p1], %l3; \
                st.param.b32 [p2], 77; st.param.b64 [p3], %l3; st.param.b64 [p4], 1; call.uni __assertfail, (p0, p1, p2, p3, p4); }\n\
                END:";
    let bench = Bench::new(&Options::default());
    let text = bench
        .words(0, &[u32::from_le_bytes(*b"x > "), u32::from_le_bytes(*b"1\0\0\0"), u32::from_le_bytes(*b"a.cu"), 0]);
    let stamp = crate::check::order::Stamp { stream: 0, sequence: 1, known: [].into(), label: "copy".into() };
    bench.memory.touch(text..text + 16, Touch::Write, &stamp, &bench.findings);
    let addresses = Addresses::from([("format".to_owned(), (Space::Global, text))]);
    let shape = Shape { addresses, ..Shape::default() };
    let kernel = Kernel { head: HEAD, body, ..Kernel::default() };
    assert_eq!(bench.launch(&kernel.text(), &shape, &[0; 16]), Err(Kind::Assertion));
    let found = bench.findings.take().pop().unwrap();
    assert_eq!(found.message, "assertion `x > 1` failed at a.cu:77");
    assert_eq!(found.thread.unwrap().thread, [3, 0, 0]);
}
