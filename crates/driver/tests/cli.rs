//! The command line as a shell sees it: help, exit codes, one clear error for each bad flag and each bad file.

mod common;

use common::{Place, demo_text, extent};
use half::f16;
use serde_json::{Value, json};

/// Flags of a prune of `model` that takes a moment.
fn small<'a>(text: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let flags =
        ["prune", "model", "--calibration", text, "--sequences", "2", "--sequence-length", "32", "--output", "out"];
    [&flags, more].concat()
}

/// A prune of the demonstration model, broken by `damage`, must be refused.
fn refuses_model(parts: &[&str], damage: impl FnOnce(&Place)) {
    let place = Place::with_demo();
    damage(&place);
    let text = demo_text("calibration.txt");
    place.refuses(1, parts, &small(&text, &[]));
}

#[test]
fn help_teaches() {
    let place = Place::new();
    let help = place.run(&["--help"]).assert_success().stdout.clone();
    for part in [
        "Usage: driver [OPTIONS] [MODEL]",
        "Examples:",
        "--pattern 2:4",
        "What is pruned:",
        "Calibration:",
        "Evaluation:",
        "windows of",
        "do not overlap",
        "over all predicted",
        "Exit codes",
    ] {
        assert!(help.contains(part), "no `{part}` in:\n{help}");
    }
    let prune = place.run(&["prune", "--help"]).assert_success().stdout.clone();
    let flags = "--output --sparsity --pattern --bits --method --damping --panel-width --calibration --sequences \
                 --sequence-length --sampling --seed --evaluate --only --skip --blocks --shards --threads --dry-run \
                 --report --config --baselines --activations --overwrite --verbose --quiet";
    for flag in flags.split_whitespace() {
        assert!(prune.contains(flag) && help.contains(flag), "{flag}");
    }
    for command in ["evaluate", "inspect"] {
        assert!(place.run(&[command, "--help"]).assert_success().stdout.contains("MODEL"));
    }
    assert!(place.run(&["--version"]).assert_success().stdout.starts_with("driver "));
}

#[test]
fn a_bad_flag_is_told_by_exit_code_2() {
    let place = Place::new();
    place.write("text.txt", "The Union is strong.");
    let refused: &[(&[&str], &str)] = &[
        (&["--sparsity", "1"], "[0, 1)"),
        (&["--sparsity", "1.5"], "[0, 1)"),
        (&["--sparsity", "-0.1"], "[0, 1)"),
        (&["--sparsity", "nan"], "[0, 1)"),
        (&["--sparsity", "half"], "--sparsity"),
        (&["--pattern", "4:4"], "n is smaller than m"),
        (&["--pattern", "8:4"], "n is smaller than m"),
        (&["--pattern", "0:4"], "at least 1"),
        (&["--pattern", "2/4"], "colon"),
        (&["--pattern", "-2:4"], "whole numbers"),
        (&["--pattern", "2:99999999"], "at most"),
        (&["--pattern", "2:4", "--sparsity", "0.5"], "cannot be used with"),
        (&["--shards", "10000000"], "at most 1024"),
        (&["--threads", "100000"], "at most 1024"),
        (&["--damping", "1e308"], "up to 1e6"),
        (&["--bits", "1"], "2 to 8"),
        (&["--bits", "9"], "2 to 8"),
        (&["--bits", "-4"], "2 to 8"),
        (&["--bits", "4", "--method", "wanda"], "sparsegpt"),
        (&["--bits", "4", "--method", "magnitude"], "sparsegpt"),
        (&["--method", "best"], "possible values"),
        (&["--damping", "0"], "above 0"),
        (&["--damping", "-0.01"], "above 0"),
        (&["--damping", "nan"], "above 0"),
        (&["--damping", "inf"], "above 0"),
        (&["--panel-width", "0"], "at least 1"),
        (&["--sequences", "0"], "at least 1"),
        (&["--sequences", "99999999999999999999"], "--sequences"),
        (&["--sequence-length", "1"], "at least 2"),
        (&["--shards", "0"], "at least 1"),
        (&["--shards", "-1"], "at least 1"),
        (&["--threads", "0"], "at least 1"),
        (&["--sampling", "stratified"], "possible values"),
        (&["--seed", "-1"], "--seed"),
        (&["--seed", "18446744073709551615"], "0..=9223372036854775807"),
        (&["--activations", "int8"], "possible values"),
        (&["--only", "("], "--only"),
        (&["--skip", "[z-a]"], "--skip"),
        (&["--blocks", "3..3"], "empty"),
        (&["--blocks", "5..2"], "empty"),
        (&["--blocks", "5"], "A..B"),
        (&["--blocks", "a..b"], "A..B"),
        (&["--baselines"], "--evaluate"),
        (&["--quiet", "--verbose"], "cannot be used with"),
        (&["--no-such-flag"], "--no-such-flag"),
    ];
    for (flags, part) in refused {
        let flags = [&["prune", "model", "--output", "out", "--calibration", "text.txt"], *flags].concat();
        place.refuses(2, &[part], &flags);
    }
    place.refuses(2, &["at least 2"], &["evaluate", "model", "text.txt", "--sequence-length", "1"]);
    place.refuses(2, &["at least 1"], &["inspect", "model", "--threads", "0"]);
    place.refuses(2, &["TEXT"], &["evaluate", "model"]);
    place.refuses(2, &["MODEL"], &["inspect"]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let place = Place::with_demo();
    let text = demo_text("calibration.txt");
    place.refuses(1, &["gone"], &["prune", "./gone", "--calibration", &text]);
    // Whatever else is missing: the model is told first, then what it has to be pruned with.
    place.refuses(1, &["gone does not exist"], &["prune", "./gone"]);
    place.refuses(1, &["no config.json"], &["prune", "."]);
    place.refuses(2, &["--calibration"], &["prune", "model"]);
    place.refuses(2, &["--calibration"], &["prune", "model", "--method", "wanda", "--dry-run"]);
    place.refuses(1, &["gone"], &["inspect", "./gone"]);
    place.refuses(1, &["gone"], &["evaluate", "./gone", &text]);
    place.refuses(1, &["hf download facebook/opt-125m"], &["inspect", "facebook/opt-125m"]);
    place.refuses(1, &["no such file", "gone.txt"], &small("gone.txt", &[]));
    place.refuses(1, &["no such file", "gone.txt"], &small(&text, &["--evaluate", "gone.txt"]));
    place.refuses(1, &["no such file", "gone.txt"], &["evaluate", "model", "gone.txt"]);
    place.refuses(1, &["gone/report.json"], &small(&text, &["--report", "gone/report.json"]));
    place.refuses(1, &["gone.toml"], &["prune", "--config", "gone.toml"]);
}

#[test]
fn damaged_safetensors_are_refused() {
    refuses_model(&["model.safetensors"], |place| {
        let bytes = place.read("model/model.safetensors");
        place.write("model/model.safetensors", &bytes[..bytes.len() - 1000]);
    });
    refuses_model(&["header"], |place| {
        let mut bytes = place.read("model/model.safetensors");
        bytes[..8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        place.write("model/model.safetensors", bytes);
    });
    let (first, second) = ("model.decoder.layers.0.fc1.weight", "model.decoder.layers.1.fc1.weight");
    refuses_model(&["model.decoder.layers."], |place| {
        place.edit_weights(|header, _| header[first]["data_offsets"] = header[second]["data_offsets"].clone());
    });
    refuses_model(&["model.safetensors"], |place| {
        place.edit_weights(|header, data| {
            // A byte in front moves every tensor of 16-bit numbers to an odd place.
            data.insert(0, 0);
            for (_, tensor) in header.as_object_mut().unwrap() {
                for offset in tensor["data_offsets"].as_array_mut().into_iter().flatten() {
                    *offset = json!(offset.as_u64().unwrap() + 1);
                }
            }
        });
    });
}

#[test]
fn an_index_that_names_what_is_missing_is_refused() {
    let index = |place: &Place, tensor: &str, file: &str| {
        std::fs::rename(place.path("model/model.safetensors"), place.path("model/part.safetensors")).unwrap();
        let map = json!({"weight_map": {"model.decoder.embed_tokens.weight": "part.safetensors", tensor: file}});
        place.write("model/model.safetensors.index.json", map.to_string());
    };
    refuses_model(&["other.safetensors"], |place| index(place, "x.weight", "other.safetensors"));
    refuses_model(&["x.weight", "part.safetensors"], |place| index(place, "x.weight", "part.safetensors"));
    // All that the index names is there, but it does not name all that the architecture has.
    refuses_model(&["model.decoder."], |place| {
        index(place, "model.decoder.final_layer_norm.bias", "part.safetensors");
    });
}

#[test]
fn wrong_shapes_and_dtypes_are_refused() {
    let layer = "model.decoder.layers.1.self_attn.k_proj.weight";
    let set = |key: &'static str, value: Value| {
        move |place: &Place| place.edit_weights(|header, _| header[layer][key] = value)
    };
    refuses_model(&[layer, "128", "512", "256"], set("shape", json!([128, 512])));
    refuses_model(&[layer, "65536"], set("shape", json!([65536])));
    refuses_model(&[layer, "I16", "torch_dtype"], set("dtype", json!("I16")));
    refuses_model(&[layer], |place| {
        place.edit_weights(|header, _| {
            let entry = header.as_object_mut().unwrap().remove(layer).unwrap();
            header["another.weight"] = entry;
        });
    });
    // The weights are right, but not for this configuration.
    refuses_model(&["model.decoder.embed_positions.weight"], |place| {
        place.edit_config(|config| config["max_position_embeddings"] = json!(512));
    });
}

#[test]
fn an_unknown_architecture_lists_the_known_ones() {
    refuses_model(&["mamba", "opt", "bloom", "llama", "mistral", "qwen2", "qwen3"], |place| {
        place.edit_config(|config| config["model_type"] = json!("mamba"));
    });
    refuses_model(&["model_type", "opt", "llama"], |place| {
        place.edit_config(|config| drop(config.as_object_mut().unwrap().remove("model_type")));
    });
    refuses_model(&["config.json"], |place| place.write("model/config.json", "{\"model_type\": "));
    for (key, value) in
        [("num_hidden_layers", json!(-1)), ("hidden_size", json!("wide")), ("num_attention_heads", json!(0))]
    {
        refuses_model(&[key], |place| place.edit_config(|config| config[key] = value));
    }
}

/// Writes 16-bit values over the beginning of a tensor.
fn overwrite(place: &Place, tensor: &str, count: usize, value: f16) {
    place.edit_weights(|header, data| {
        let start = extent(header, tensor).start;
        for element in data[start..][..2 * count].chunks_exact_mut(2) {
            element.copy_from_slice(&value.to_le_bytes());
        }
    });
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    for value in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
        for tensor in ["model.decoder.layers.2.fc1", "model.decoder.layers.2.self_attn.v_proj"] {
            let weight = format!("{tensor}.weight");
            refuses_model(&[tensor], |place| overwrite(place, &weight, 1, value));
        }
    }
    refuses_model(&["model.decoder.layers.1.fc1.bias"], |place| {
        overwrite(place, "model.decoder.layers.1.fc1.bias", 1, f16::NAN);
    });
}

#[test]
fn weights_that_no_pruning_touches_are_checked_as_well() {
    for tensor in ["model.decoder.embed_tokens.weight", "model.decoder.final_layer_norm.weight"] {
        refuses_model(&[tensor], |place| overwrite(place, tensor, 1, f16::NAN));
    }
}

#[test]
fn tensors_that_are_none_of_the_models_may_hold_infinity() {
    let place = Place::with_demo();
    place.edit_weights(|header, data| {
        let start = data.len();
        data.extend(f16::NEG_INFINITY.to_le_bytes());
        header["model.decoder.layers.0.masked_bias"] =
            json!({"dtype": "F16", "shape": [1], "data_offsets": [start, start + 2]});
    });
    place.run(&small(&demo_text("calibration.txt"), &["--blocks", "0..1"])).assert_success();
}

#[test]
fn quantized_checkpoints_are_refused_with_the_way_out() {
    for (quantization, method) in [(json!({"quant_method": "gptq", "bits": 4}), "\"gptq\""), (json!({}), "missing")] {
        refuses_model(&["quantized", method, "original", "dequantize"], |place| {
            place.edit_config(|config| config["quantization_config"] = quantization);
        });
    }
    let place = Place::with_demo();
    place.edit_config(|config| config["quantization_config"] = Value::Null);
    place.run(&small(&demo_text("calibration.txt"), &["--dry-run"])).assert_success();
}

#[test]
fn shards_without_work_are_left_out_and_reported() {
    let place = Place::with_demo();
    let text = demo_text("calibration.txt");
    let only = ["--blocks", "0..1", "--only", "q_proj"];
    let pruned = |shards: &str, output: &str| {
        let mut flags = [&small(&text, &only)[..], &["--shards", shards]].concat();
        let at = flags.iter().position(|&flag| flag == "out").unwrap();
        flags[at] = output;
        let run = place.run(&flags);
        run.assert_success();
        let report: Value = serde_json::from_slice(&place.read(&format!("{output}/pruning.json"))).unwrap();
        (run.stderr, report, place.read(&format!("{output}/model.safetensors")))
    };
    let (_, one, _) = pruned("1", "one");
    assert_eq!(one["warnings"], json!([]));
    let rows = one["layers"][0]["rows"].as_u64().unwrap();
    let (_, each, each_weights) = pruned(&rows.to_string(), "each");
    assert_eq!((&each["shards"], &each["warnings"]), (&json!(rows), &json!([])));
    let (stderr, more, more_weights) = pruned("1000", "more");
    let warning = format!("{} of 1000 shards have nothing to do, {rows} are used", 1000 - rows);
    assert_eq!((&more["shards"], &more["warnings"]), (&json!(rows), &json!([warning])));
    assert_eq!(stderr.matches(&warning).count(), 1, "{stderr}");
    assert!(more_weights == each_weights);
}

#[test]
fn threads_beyond_those_of_the_machine_are_left_out() {
    let place = Place::with_demo();
    let run = place.run(&small(&demo_text("calibration.txt"), &["--blocks", "0..1", "--threads", "1024"]));
    run.assert_success();
    let most = std::thread::available_parallelism().unwrap().get();
    let warned = run.stderr.contains(&format!("1024 threads are more than the {most} that this machine runs"));
    assert_eq!(warned, most < 1024, "{}", run.stderr);
}

#[test]
fn activations_that_overflow_are_refused_by_block() {
    // Finite weights as large as f16 holds them: fc1 times fc2 leaves the range of the kept activations.
    refuses_model(&["block 1"], |place| {
        overwrite(place, "model.decoder.layers.1.fc1.weight", 1024 * 256, f16::MAX);
        overwrite(place, "model.decoder.layers.1.fc1.bias", 1024, f16::MAX);
        overwrite(place, "model.decoder.layers.1.fc2.weight", 256 * 1024, f16::MAX);
    });
}

#[test]
fn texts_that_cannot_be_used_are_refused() {
    let place = Place::with_demo();
    place.write("short.txt", "The Union is strong.");
    place.write("empty.txt", "");
    place.write("latin1.txt", b"caf\xe9 noir");
    place.write("lines.jsonl", "{\"text\": \"one\"}\n{\"body\": \"two\"}\n");
    place.write("cut.txt.gz", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..]);
    let refuse = |text: &str, parts: &[&str]| {
        place.refuses(1, parts, &small(text, &[]));
        let calibration = demo_text("calibration.txt");
        place.refuses(1, parts, &small(&calibration, &["--evaluate", text]));
        place.refuses(1, parts, &["evaluate", "model", text]);
    };
    refuse("empty.txt", &["empty.txt", "no text"]);
    refuse("latin1.txt", &["latin1.txt", "UTF-8", "byte 3"]);
    refuse("lines.jsonl", &["lines.jsonl", "line 2", "`text`"]);
    refuse("cut.txt.gz", &["cut.txt.gz", "corrupted", "gzip"]);
    place.refuses(1, &["tokens found, 64 needed"], &small("short.txt", &[]));
    place.refuses(1, &["tokens found, 256 needed"], &["evaluate", "model", "short.txt"]);

    std::fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    let calibration = demo_text("calibration.txt");
    place.refuses(1, &["no tokenizer.json", "save_pretrained"], &small(&calibration, &[]));
}

#[test]
fn what_the_model_does_not_have_cannot_be_asked_for() {
    let place = Place::with_demo();
    let text = demo_text("calibration.txt");
    let refuse = |parts: &[&str], flags: &[&str]| {
        for more in [&[][..], &["--dry-run"]] {
            place.refuses(1, parts, &small(&text, &[flags, more].concat()));
        }
    };
    refuse(&["3:7", "256", "model.decoder.layers.0.self_attn."], &["--pattern", "3:7"]);
    refuse(&["block 4", "has 4"], &["--blocks", "4.."]);
    refuse(&["block 7", "has 4"], &["--blocks", "2..8"]);
    refuse(&["no layer", "model.decoder.layers.0."], &["--only", "experts"]);
    let flags = ["prune", "model", "--calibration", &text, "--sequence-length", "257"];
    place.refuses(1, &["257", "256 positions"], &flags);
}

#[test]
fn a_dry_run_prints_the_plan_and_does_nothing() {
    let place = Place::with_demo();
    let before = place.list();
    let run = place.run(&["prune", "model", "--calibration", "gone.txt", "--output", "out", "--dry-run"]);
    let plan = &run.assert_success().stdout;
    for part in ["opt, 4 blocks", "128 sequences of 256 tokens", "fc2", "[256, 1024]", "24 layers", "Memory peak"] {
        assert!(plan.contains(part), "no `{part}` in:\n{plan}");
    }
    assert_eq!(place.list(), before);
    let demonstration = place.run(&["--dry-run", "--shards", "8"]);
    assert!(demonstration.assert_success().stdout.contains("8 shards"));
    assert_eq!(place.list(), before);
}

#[test]
fn progress_counts_what_there_is_to_do() {
    let place = Place::with_demo();
    let text = demo_text("calibration.txt");
    // 64 tokens make one chunk. Stages 1 and 3 take a pass that gathers their inputs and one that absorbs their output,
    // any stage with a layer to prune the former; every layer is a step. Nothing follows the last layer.
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["26 %", "51 %", "77 %", "100 %"]), // 12 a block, 11 in the last
        (&["--method", "wanda"], &["26 %", "51 %", "77 %", "100 %"]),
        (&["--method", "magnitude"], &["25 %", "50 %", "75 %", "100 %"]), // 6 each
        (&["--only", "fc2"], &["26 %", "53 %", "79 %", "100 %"]),         // 5, 5, 5, 4
        (&["--only", "q_proj"], &["30 %", "60 %", "90 %", "100 %"]),      // 6, 6, 6, 2
        (&["--skip", "fc", "--blocks", "1..3"], &["21 %", "68 %", "100 %"]), // 4, 9, 6
        (&["--blocks", "..1", "--only", "k_proj", "--method", "wanda"], &["100 %"]), // 2
    ];
    for (flags, percents) in cases {
        let flags = small(&text, &[flags, &["--overwrite"][..]].concat());
        let run = place.run(&flags);
        let lines = run.assert_success().stderr.lines().filter(|line| line.contains("block "));
        let shares: Vec<_> = lines.map(|line| line.split(" · ").nth(1).unwrap_or(line)).collect();
        assert_eq!(shares, *percents, "{flags:?}");
    }
}

#[test]
fn inspect_knows_every_architecture() {
    for (model, blocks) in [
        ("opt", 2),
        ("opt-post-norm", 2),
        ("bloom", 2),
        ("llama", 2),
        ("llama-rope-scaled", 2),
        ("mistral-sliding-window", 2),
        ("qwen2", 2),
        ("qwen3", 2),
    ] {
        let place = Place::with_model(model);
        let text = place.run(&["inspect", "model"]).assert_success().stdout.clone();
        assert!(text.contains(&format!("{blocks} blocks")), "{model}: {text}");
        for part in ["Stages of a block", "Layers", "2:4", "No NaN.", "No infinity."] {
            assert!(text.contains(part), "{model}: no `{part}` in:\n{text}");
        }
        let json: Value = serde_json::from_str(&place.run(&["inspect", "model", "--json"]).stdout).unwrap();
        assert_eq!(json["blocks"], blocks, "{model}");
        let tensors = json["tensors"].as_array().unwrap();
        let total: u64 = tensors.iter().map(|tensor| tensor["parameters"].as_u64().unwrap()).sum();
        assert_eq!(json["parameters"], total);
    }
}

#[test]
fn inspect_lists_an_unknown_architecture_and_finds_oddities() {
    let place = Place::with_demo();
    overwrite(&place, "model.decoder.layers.0.fc1.weight", 3, f16::NAN);
    overwrite(&place, "model.decoder.layers.1.fc1.bias", 2, f16::INFINITY);
    overwrite(&place, "model.decoder.layers.2.fc1.weight", 1, f16::NEG_ZERO);
    let odd = |text: &str| {
        for line in [
            "3 of NaN in model.decoder.layers.0.fc1.weight",
            "2 of infinity in model.decoder.layers.1.fc1.bias",
            "1 of -0.0 in model.decoder.layers.2.fc1.weight",
        ] {
            assert!(text.contains(line), "no `{line}` in:\n{text}");
        }
    };
    odd(&place.run(&["inspect", "model"]).assert_success().stdout);
    place.edit_config(|config| config["model_type"] = json!("mamba"));
    let text = place.run(&["inspect", "model"]).assert_success().stdout.clone();
    assert!(text.contains("mamba") && text.contains("Matrices"), "{text}");
    odd(&text);
}

#[test]
fn an_existing_folder_is_not_touched() {
    let place = Place::with_demo();
    let text = demo_text("calibration.txt");
    std::fs::create_dir(place.path("out")).unwrap();
    place.write("out/mine", "precious");
    place.refuses(1, &["out", "--overwrite"], &small(&text, &[]));
    // Not a checkpoint: not even --overwrite replaces it.
    place.refuses(1, &["out", "not a checkpoint"], &small(&text, &["--overwrite"]));
    assert_eq!(place.read("out/mine"), b"precious");
    // A checkpoint, but not the result of a prune.
    place.write("out/config.json", "{}");
    place.refuses(1, &["out", "pruning.toml"], &small(&text, &["--overwrite"]));
    assert_eq!(place.read("out/mine"), b"precious");
    place.refuses(1, &["model"], &["prune", "model", "--calibration", &text, "--output", "model", "--overwrite"]);
    place.refuses(1, &["model's folder"], &small(&text, &["--report", "model/model.safetensors"]));
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_the_work() {
    let place = Place::with_demo();
    let text = demo_text("calibration.txt");
    let refuse = |parts: &[&str], report: &str| {
        let refused = place.refuses(1, parts, &small(&text, &["--report", report]));
        assert!(!refused.contains("block 1 of"), "{refused}");
    };
    refuse(&["gone/report.json", "no folder"], "gone/report.json");
    refuse(&["where the result goes"], "out");
    refuse(&["where the result goes"], "./out");
    refuse(&["where the result goes"], "gone/../out");
    refuse(&["model's folder"], "model/../model/report.json");
    // A folder of the system in which nobody makes files, whoever runs the test.
    #[cfg(target_os = "linux")]
    refuse(&["cannot write the report"], "/proc/report.json");
}

#[test]
fn a_report_replaces_neither_the_result_nor_what_is_read() {
    let place = Place::with_demo();
    let calibration = std::fs::read(demo_text("calibration.txt")).unwrap();
    for name in ["text.txt", "other.txt"] {
        place.write(name, &calibration);
    }
    place.write("run.toml", "sequences = 2\n");
    place.run(&small("text.txt", &["--method", "magnitude"])).assert_success();
    let refuse = |parts: &[&str], report: &str| {
        let kept = std::fs::read(place.path(report)).ok();
        let more = ["--evaluate", "other.txt", "--config", "run.toml", "--overwrite", "--report", report];
        let refused = place.refuses(1, parts, &small("text.txt", &more));
        assert!(!refused.contains("block 1 of"), "{refused}");
        assert_eq!(std::fs::read(place.path(report)).ok(), kept);
    };
    for name in ["out/model.safetensors", "out/config.json", "out/pruning.toml", "out/new.json", "model/../out/x"] {
        refuse(&[name, "in the result out"], name);
    }
    for name in ["text.txt", "other.txt", "run.toml"] {
        refuse(&[name, "which this run reads"], name);
        refuse(&[name, "which this run reads"], &format!("model/../{name}"));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;

        std::fs::create_dir(place.path("blobs")).unwrap();
        std::fs::rename(place.path("model/model.safetensors"), place.path("blobs/weights")).unwrap();
        symlink("../blobs/weights", place.path("model/model.safetensors")).unwrap();
        symlink("text.txt", place.path("link.txt")).unwrap();
        symlink("out", place.path("link")).unwrap();
        refuse(&["blobs/weights", "model's folder"], "blobs/weights");
        refuse(&["link.txt", "text.txt, which this run reads"], "link.txt");
        refuse(&["link/model.safetensors", "in the result out"], "link/model.safetensors");
    }
}

/// Runs the program, interrupts it as soon as the shell finds `moment` true, and returns its exit code; ended before the
/// moment came, it is not interrupted.
#[cfg(unix)]
fn interrupt(place: &Place, flags: &[&str], moment: &str) -> Option<i32> {
    let script = format!("\"$@\" & until {moment}; do kill -0 $! || break; done 2> /dev/null; kill -INT $!; wait $!");
    // A shell without job control has its background jobs ignore SIGINT.
    let mut bash = std::process::Command::new("bash");
    bash.args(["-m", "-c", &script, "bash", env!("CARGO_BIN_EXE_driver")]).args(flags);
    bash.current_dir(place.path("")).status().unwrap().code()
}

/// An interrupt in the middle of the work leaves nothing of it behind.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing_behind() {
    let place = Place::with_demo();
    let text = demo_text("calibration.txt");
    let prune = ["prune", "model", "--quiet", "--calibration", &text];
    // The interrupt comes once the temporary folder is there, however fast the machine is.
    for (output, moment) in [
        (&["--output", "out"][..], "ls -A | grep -q partial"),
        (&["--output", "a/b/out"], "ls -A a/b | grep -q partial"),
        (&["--output", "a/b/out"], "test -e a"),
        (&[], "ls -A pruned | grep -q partial"),
    ] {
        assert_eq!(interrupt(&place, &[&prune, output].concat(), moment), Some(130), "{output:?}");
        assert_eq!(place.list(), ["model"], "{output:?}");
    }
    // A parent that was there before stays.
    std::fs::create_dir(place.path("a")).unwrap();
    let flags = [&prune[..], &["--output", "a/b/out"]].concat();
    assert_eq!(interrupt(&place, &flags, "ls -A a/b | grep -q partial"), Some(130));
    assert_eq!(place.list(), ["a", "model"]);
    assert!(!place.path("a/b").exists());
}

/// Interrupted while a result takes the place of another, the program first brings that to its end.
#[cfg(unix)]
#[test]
fn an_interrupt_does_not_come_between_two_results() {
    let place = Place::with_demo();
    let text = demo_text("calibration.txt");
    let prune = ["prune", "model", "--quiet", "--calibration", &text, "--method", "magnitude", "--output", "out"];
    place.run(&prune).assert_success();
    // The removal of many files is long enough for the shell to see the folder that they were moved to.
    for file in 0..20_000 {
        place.write(&format!("out/{file}"), "");
    }
    let code = interrupt(&place, &[&prune[..], &["--overwrite"]].concat(), "ls -A | grep -q replaced");
    assert!(matches!(code, Some(0 | 130)), "{code:?}");
    assert_eq!(place.list(), ["model", "out"]);
    assert!(place.path("out/pruning.json").is_file() && !place.path("out/0").exists());
}

/// A limit on the size of files stands in for a full disk: both end in an error of `write`.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let place = Place::with_demo();
    let text = demo_text("calibration.txt");
    let before = place.list();
    // 1000 blocks of 512 or 1024 bytes, less than the weights take.
    let run = place.run_in_shell("trap '' XFSZ; ulimit -f 1000", &small(&text, &[]));
    run.assert_error(1, &["cannot write", "model.safetensors"]);
    assert_eq!(place.list(), before);
}

/// As `mpirun` tells its processes.
#[cfg(all(unix, not(feature = "mpi")))]
#[test]
fn without_mpi_a_process_is_not_one_of_several_ranks() {
    let place = Place::with_demo();
    let run = place.run_in_shell("export OMPI_COMM_WORLD_SIZE=4", &["inspect", "model"]);
    run.assert_error(1, &["one of 4 ranks", "--features mpi"]);
    place.run_in_shell("export OMPI_COMM_WORLD_SIZE=1", &["inspect", "model"]).assert_success();
}
