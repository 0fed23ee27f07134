// SPDX-License-Identifier: MIT
// The command line as its user meets it: exit codes and sentences, the benchmark's 21 entries,
// attention on .npy files against the oracle, windows, checks.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/conformance.h"
#include "cli/npy.h"
#include "cli/prediction.h"
#include "definition.h"
#include "oracle.h"
#include "results.h"
#include "vecina/vecina.h"

namespace vecina::tests {
namespace {

struct Finished {
  int code;
  std::string out, err;
};

class Cli : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "vecina_cli_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  // Runs `vecina ARGUMENTS` through the shell, in the test's own folder.
  Finished run(const std::string& arguments) const {
    const std::string command = "cd '" + folder_.string() + "' && '" + VECINA_CLI_PATH + "' " +
                                arguments + " >out 2>err </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text_of("out"), text_of("err")};
  }
  std::string text_of(const std::string& name) const {
    std::ifstream file(path(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& name, const cli::HostTensor& tensor) const {
    if (tensor.given()) cli::write_npy(path(name), tensor);
  }

  // One sentence on standard error that holds the words, nothing on standard output.
  void expect_usage_error(const std::string& arguments, const std::vector<std::string>& words) {
    SCOPED_TRACE(arguments);
    const Finished finished = run(arguments);
    EXPECT_EQ(finished.code, 2);
    EXPECT_EQ(finished.out, "");
    EXPECT_EQ(std::count(finished.err.begin(), finished.err.end(), '\n'), 1) << finished.err;
    for (const std::string& word : words) {
      EXPECT_NE(finished.err.find(word), std::string::npos)
          << "'" << word << "' is missing in: " << finished.err;
    }
  }

  std::filesystem::path folder_;
};

TEST_F(Cli, UsageErrors) {
  expect_usage_error("nonsense", {"nonsense", "--help"});
  expect_usage_error("bench --nonsense", {"--nonsense"});
  expect_usage_error("bench --repeats", {"--repeats"});
  expect_usage_error("bench --repeats 0", {"--repeats", "0"});
  expect_usage_error("bench --repeats many", {"--repeats", "many"});
  expect_usage_error("bench --features warp", {"warp"});
  expect_usage_error("bench --backends warp", {"warp"});
  expect_usage_error("bench --threads 0", {"--threads", "0"});
  expect_usage_error("check --problem '1d 9 kernel_size 30 head_dim 4'", {"kernel_size 30", "9"});
  expect_usage_error("check --backend warp", {"warp", "cpu"});
  expect_usage_error("plan '1d 9 kernel_sizes 3 head_dim 4'", {"kernel_sizes"});
  expect_usage_error("window '1d 9 kernel_size 10 head_dim 4'", {"kernel_size 10", "9"});
  expect_usage_error("profile '5d 3'", {"5d"});
  expect_usage_error("kernels melt", {"melt", "list"});
  expect_usage_error("kernels build --capability 12 1d 9 kernel_size 3 head_dim 4", {"12"});
  expect_usage_error("kernels build 1d 9 kernel_size 30 head_dim 4", {"kernel_size 30", "9"});
  expect_usage_error("kernels build --parts forward,half 1d 9 kernel_size 3 head_dim 4",
                     {"half", "split"});
  expect_usage_error("tune", {"problem line", "--clear"});
  expect_usage_error("tune --cuts 0 1d 9 kernel_size 3 head_dim 4", {"--cuts", "0"});
  expect_usage_error("tune --clear 1d 9 kernel_size 3 head_dim 4", {"--clear"});
  expect_usage_error("tune 1d 9 kernel_size 30 head_dim 4", {"kernel_size 30", "9"});
  expect_usage_error("run", {"--query"});
  for (const char* command : {"check", "profile"}) {
    expect_usage_error(std::string(command) + " --time-limit 0",
                       {"--time-limit", "above 0, not 0"});
  }
  expect_usage_error("profile 1d 9 kernel_size 3 head_dim 4 batch 0", {"batch 0"});
  EXPECT_EQ(run("").code, 2) << "no command";
}

TEST_F(Cli, HelpAndVersion) {
  const Finished version = run("--version");
  EXPECT_EQ(version.code, 0);
  EXPECT_EQ(version.out, "vecina 0.1.0\n");
  for (const char* command : {"bench", "run", "check", "info", "plan", "window", "profile",
                              "kernels", "tune", "completion", "man"}) {
    const Finished help = run(std::string(command) + " --help");
    EXPECT_EQ(help.code, 0) << command;
    EXPECT_NE(help.out.find(std::string("vecina ") + command), std::string::npos) << command;
  }
}

TEST_F(Cli, PlansWithoutMemoryForTheTensors) {
  const std::string line = "2d 4096x4096 kernel_size 7 heads 16 head_dim 128";  // 137 GB a tensor
  for (const char* pass : {"", " --backward"}) {
    const Finished finished = run("plan --backend cpu --json" + std::string(pass) + " " + line);
    ASSERT_EQ(finished.code, 0) << finished.err;
    EXPECT_EQ(nlohmann::json::parse(finished.out).at("backend"), "cpu");
  }
}

TEST_F(Cli, MeasuredTimesHavePredictionsBesideThem) {
  const std::string line = "2d 16x16 kernel_size 5 heads 1 head_dim 16";
  for (const char* pass : {"", " --backward"}) {
    const Finished profile =
        run("profile --backend cpu --repeats 3 --no-dense" + std::string(pass) + " " + line);
    ASSERT_EQ(profile.code, 0) << profile.err;
    EXPECT_NE(profile.out.find("predicted "), std::string::npos) << profile.out;
    const Finished plan =
        run("plan --backend cpu --measure --json" + std::string(pass) + " " + line);
    ASSERT_EQ(plan.code, 0) << plan.err;
    const nlohmann::json json = nlohmann::json::parse(plan.out);
    const double predicted_us = 1000.0 * json.at("details").at("predicted_ms").get<double>();
    EXPECT_NEAR(json.at("prediction_error").get<double>(),
                predicted_us / json.at("measured_us").get<double>() - 1.0, 1e-9);
  }
}

const std::vector<std::string> kSeedNames = {
    "baseline_1d_L256_K7", "baseline_2d_32x32_K7", "gqa4_1d_L256_K7",      "mqa_1d_L256_K7",
    "gqa4_2d_32x32_K7",    "mqa_2d_32x32_K7",      "lse_1d_L256_K7",       "lse_2d_32x32_K7",
    "addkv1_1d_L256_K7",   "addkv4_1d_L256_K7",    "addkv1_2d_32x32_K7",   "addkv1_gqa4_1d_L256_K7",
    "bf16_1d_L256_K7",     "bf16_2d_32x32_K7",     "bf16_gqa4_1d_L256_K7", "fmha_1d_L16_Kfull",
    "fmha_1d_L64_Kfull",   "fmha_2d_8x8_Kfull",    "fmha_2d_16x16_Kfull",  "merge2_1d_L256",
    "merge2_2d_32x32"};

TEST_F(Cli, BenchHasTheSeedsEntries) {
  const Finished finished = run("bench --repeats 3 --warmup 1 --json out.json");
  ASSERT_EQ(finished.code, 0) << finished.err;
  const nlohmann::json entries = nlohmann::json::parse(text_of("out.json"));
  ASSERT_EQ(entries.size(), 21u);
  for (size_t i = 0; i < entries.size(); ++i) {
    const nlohmann::json& entry = entries[i];
    EXPECT_EQ(entry.at("name"), kSeedNames[i]);
    EXPECT_EQ(entry.at("dim"), kSeedNames[i].find("2d") != std::string::npos ? "2d" : "1d");
    const double cpu = entry.at("cpu_ms"), reference = entry.at("reference_ms");
    EXPECT_GT(cpu, 0.0);
    EXPECT_GT(reference, 0.0);
    EXPECT_NEAR(entry.at("ratio").get<double>(),
                std::max(cpu, reference) / std::min(cpu, reference),
                1e-3 * entry.at("ratio").get<double>());
    EXPECT_EQ(entry.at("winner"), cpu < reference ? "cpu" : "reference");
    EXPECT_EQ(entry.at("dtype"), kSeedNames[i].rfind("bf16", 0) == 0 ? "bf16" : "f32");
    EXPECT_EQ(entry.at("version"), "0.1.0");
    for (const char* key : {"feature", "problem", "device", "cpu_min_ms", "cpu_spread"}) {
      EXPECT_TRUE(entry.contains(key)) << key;
    }
  }
  // The seed's problems, by the seed's names.
  EXPECT_EQ(entries[4].at("problem"),
            "2d 32x32 kernel_size 7x7 batch 2 heads 8 heads_kv 2 head_dim 32");
  EXPECT_EQ(entries[11].at("problem"),
            "1d 256 kernel_size 7 batch 2 heads 8 heads_kv 2 head_dim 32 additional 1");
  EXPECT_EQ(entries[17].at("problem"), "2d 8x8 kernel_size 8x8 batch 4 heads 4 head_dim 32");
  EXPECT_EQ(std::count(finished.out.begin(), finished.out.end(), '\n') >= 23, true) << "a table";
  for (const char* text : {"| Feature", "GQA4 2D 32x32 K=7", "2-way, 1D L=256", "vecina 0.1.0"}) {
    EXPECT_NE(finished.out.find(text), std::string::npos) << text;
  }
}

TEST_F(Cli, BenchWritesOnlyJsonWhereAsked) {
  const Finished finished = run("bench --features baseline --repeats 2 --warmup 1 --json -");
  ASSERT_EQ(finished.code, 0) << finished.err;
  EXPECT_EQ(nlohmann::json::parse(finished.out).size(), 2u);
  ASSERT_EQ(run("bench --features gqa merge --repeats 2 --warmup 1 --json old.json").code, 0);
  EXPECT_EQ(nlohmann::json::parse(text_of("old.json")).size(), 6u);
  const Finished compared =
      run("bench --features gqa merge --repeats 2 --warmup 1 --compare old.json");
  EXPECT_EQ(compared.code, 0) << compared.err;
}

// What would be refused after the measurements is refused before: none of these takes a second.
TEST_F(Cli, BenchLooksAtItsFilesFirst) {
  const std::string bench = "bench --repeats 1000000 ";
  expect_usage_error(bench + "--json none/now.json", {"none/now.json"});
  expect_usage_error(bench + "--plot none/now.svg", {"none/now.svg"});
  expect_usage_error(bench + "--json .", {"folder"});
  std::ofstream(path("words.json")) << "no numbers";
  expect_usage_error(bench + "--json words.json/now.json", {"words.json", "no folder"});
  expect_usage_error(bench + "--compare words.json", {"--compare", "list"});
  std::ofstream(path("other.json")) << R"([{"name": "baseline_1d_L256_K7", "abacus_ms": 3}])";
  expect_usage_error(bench + "--compare other.json", {"--compare", "in common"});
  expect_usage_error(bench + "--backends cpu,cpu", {"cpu", "twice"});
  EXPECT_FALSE(std::filesystem::exists(path("none")));
}

TEST_F(Cli, WhatCannotBeWrittenFails) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  for (const char* arguments : {"window 1d 10 kernel_size 3", "info --json", "--help", "man"}) {
    const std::string command = "cd '" + folder_.string() + "' && '" + VECINA_CLI_PATH + "' " +
                                arguments + " >/dev/full 2>err </dev/null";
    const int status = std::system(command.c_str());
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << arguments << ": " << status;
    EXPECT_NE(text_of("err").find("writ"), std::string::npos) << text_of("err");
  }
  const Finished window = run("window 1d 10 kernel_size 3 --svg /dev/full");
  EXPECT_EQ(window.code, 1) << window.err;
  EXPECT_NE(window.err.find("/dev/full"), std::string::npos) << window.err;
}

TEST_F(Cli, MemoryThatThereIsNotIsNamed) {
  const Finished finished =
      run("plan --measure 3d 4096x4096x4096 kernel_size 3 heads 64 head_dim 512");  // 2^53 bytes
  EXPECT_EQ(finished.code, 1);
  EXPECT_NE(finished.err.find("memory"), std::string::npos) << finished.err;
}

// "3,4": one number for each axis.
template <typename Number>
std::string axes_text(const Number (&values)[3], int32_t rank) {
  std::string text = std::to_string(values[0]);
  for (int a = 1; a < rank; ++a) text.append(",").append(std::to_string(values[a]));
  return text;
}

TEST_F(Cli, RunEqualsTheOracle) {
  for (const char* line :
       {"1d 13 kernel_size 5 batch 2 heads 2 head_dim 6",
        "2d 7x8 kernel_size 3x4 stride 1x2 dilation 2x1 causal 0x1 heads 4 heads_kv 2 head_dim 4 "
        "head_dim_value 5 additional 3 scale -0.4",
        "3d 4x3x5 kernel_size 2x3x3 output_stride 2x1x1 heads 1 head_dim 4 dtype f64",
        "1d 13 kernel_size 4 batch 1 heads 2 head_dim 8 dtype bf16"}) {
    SCOPED_TRACE(line);
    const vecina_problem problem = cli::parse_problem(line);
    const cli::Inputs inputs = cli::random_inputs(problem, 51);
    write("q.npy", inputs.query);
    write("k.npy", inputs.key);
    write("v.npy", inputs.value);
    write("ak.npy", inputs.additional_key);
    write("av.npy", inputs.additional_value);
    write("g.npy", inputs.grad_output);
    write("gl.npy", inputs.grad_lse);
    std::string arguments = "run --rank " + std::to_string(problem.rank) +
                            " --query q.npy --key k.npy --value v.npy --kernel-size " +
                            axes_text(problem.kernel_size, problem.rank) + " --stride " +
                            axes_text(problem.stride, problem.rank) + " --output-stride " +
                            axes_text(problem.output_stride, problem.rank) + " --dilation " +
                            axes_text(problem.dilation, problem.rank) + " --causal " +
                            axes_text(problem.is_causal, problem.rank);
    if (problem.has_scale) arguments += " --scale=" + std::to_string(problem.scale);
    if (problem.dtype == VECINA_BF16) arguments += " --dtype bf16";
    if (inputs.additional_key.given()) {
      arguments +=
          " --additional-key ak.npy --additional-value av.npy"
          " --grad-additional-key gak.npy --grad-additional-value gav.npy";
    }
    arguments +=
        " --backend reference --out o.npy --lse l.npy --grad-out g.npy --grad-lse gl.npy"
        " --grad-query gq.npy --grad-key gk.npy --grad-value gv.npy";
    const Finished finished = run(arguments);
    ASSERT_EQ(finished.code, 0) << arguments << "\n" << finished.err;
    const OracleOutputs outputs = oracle_forward(problem, inputs);
    const OracleGradients gradients = oracle_backward(problem, inputs);
    const auto read = [&](const std::string& name) {
      return cli::read_npy(path(name), problem.dtype == VECINA_BF16 ? VECINA_BF16 : -1);
    };
    expect_rounded("output", read("o.npy"), outputs.output, 1e-10);
    expect_rounded("lse", cli::read_npy(path("l.npy")), outputs.lse, 1e-10);
    expect_rounded("grad_query", read("gq.npy"), gradients.query, 1e-9);
    expect_rounded("grad_key", read("gk.npy"), gradients.key, 1e-9);
    expect_rounded("grad_value", read("gv.npy"), gradients.value, 1e-9);
    if (inputs.additional_key.given()) {
      expect_rounded("grad_additional_key", read("gak.npy"), gradients.additional_key, 1e-9);
      expect_rounded("grad_additional_value", read("gav.npy"), gradients.additional_value, 1e-9);
    }
    EXPECT_EQ(read("o.npy").dtype(), problem.dtype);
  }
}

TEST_F(Cli, RunRefusesBadFiles) {
  const vecina_problem problem = cli::parse_problem("1d 9 kernel_size 3 heads 2 head_dim 4");
  const cli::Inputs inputs = cli::random_inputs(problem, 52);
  write("q.npy", inputs.query);
  write("k.npy", inputs.key);
  write("v.npy", inputs.value);
  const std::string rest = " --key k.npy --value v.npy --kernel-size 3 --out o.npy";
  const auto expect_failure = [&](const std::string& arguments,
                                  const std::vector<std::string>& words) {
    const Finished finished = run(arguments);
    EXPECT_TRUE(finished.code == 1 || finished.code == 2) << arguments << " " << finished.code;
    for (const std::string& word : words) {
      EXPECT_NE(finished.err.find(word), std::string::npos) << word << ": " << finished.err;
    }
    EXPECT_FALSE(std::filesystem::exists(path("o.npy"))) << arguments;
  };
  ASSERT_EQ(run("run --query q.npy" + rest).code, 0);
  std::filesystem::remove(path("o.npy"));
  expect_failure("run --query none.npy" + rest, {"none.npy"});
  std::ofstream(path("text.npy")) << "these are no numbers";
  expect_failure("run --query text.npy" + rest, {"text.npy"});
  std::ofstream(path("empty.npy")).close();
  expect_failure("run --query empty.npy" + rest, {"empty.npy"});
  const std::string whole = text_of("q.npy");
  std::ofstream(path("short.npy"), std::ios::binary) << whole.substr(0, whole.size() - 3);
  expect_failure("run --query short.npy" + rest, {"short.npy"});
  std::string big_endian = whole;
  big_endian.replace(big_endian.find("<f4"), 3, ">f4");
  std::ofstream(path("big.npy"), std::ios::binary) << big_endian;
  const Finished big = run("run --query big.npy" + rest);
  EXPECT_TRUE(big.code == 0 || big.err.find("big.npy") != std::string::npos) << big.err;
  std::filesystem::remove(path("o.npy"));
  expect_failure("run --query q.npy --key k.npy --value v.npy --kernel-size 10 --out o.npy",
                 {"kernel_size 10", "9"});
  expect_failure("run --query q.npy --key k.npy --value v.npy --kernel-size 3,3 --out o.npy",
                 {"kernel-size", "2"});
  write("k.npy",
        cli::random_inputs(cli::parse_problem("1d 8 kernel_size 3 heads 2 head_dim 4"), 1).key);
  expect_failure("run --query q.npy" + rest, {"key", "8", "9"});
  expect_failure("run --query q.npy --key k.npy --value v.npy --kernel-size 3", {"--out"});
}

TEST_F(Cli, RunWritesNothingIfItRefuses) {
  const vecina_problem problem = cli::parse_problem("1d 9 kernel_size 3 heads 2 head_dim 4");
  const cli::Inputs inputs = cli::random_inputs(problem, 52);
  write("q.npy", inputs.query);
  write("k.npy", inputs.key);
  write("v.npy", inputs.value);
  write("g.npy", inputs.grad_output);
  write("wrong.npy",
        cli::random_inputs(cli::parse_problem("1d 8 kernel_size 3 heads 2 head_dim 4"), 1).key);
  const std::string call = "run --query q.npy --key k.npy --value v.npy --kernel-size 3 ";
  const std::string query = text_of("q.npy");
  std::ofstream(path("o.npy")) << "older";
  const auto expect_refused = [&](const std::string& arguments,
                                  const std::vector<std::string>& words) {
    expect_usage_error(call + arguments, words);
    EXPECT_EQ(text_of("o.npy"), "older") << arguments;
    EXPECT_EQ(text_of("q.npy"), query) << arguments;
    EXPECT_FALSE(std::filesystem::exists(path("gq.npy"))) << arguments;
  };
  expect_refused("--out o.npy --grad-out wrong.npy --grad-query gq.npy", {"grad_output", "8"});
  expect_refused("--out o.npy --grad-out g.npy --grad-additional-key gq.npy", {"additional"});
  expect_refused("--out o.npy --grad-out g.npy", {"--grad-out", "--grad-query"});
  expect_refused("--out o.npy --lse none/l.npy", {"none/l.npy"});
  expect_refused("--out o.npy --lse .", {"folder"});
  expect_refused("--out o.npy --lse ./o.npy", {"--out", "--lse", "o.npy"});
  std::filesystem::create_symlink("new.npy", path("link.npy"));
  expect_refused("--out link.npy --lse new.npy", {"--out", "--lse", "new.npy"});
  expect_refused("--lse gq.npy --grad-out g.npy --grad-query gq.npy", {"--lse", "--grad-query"});
  expect_refused("--out q.npy", {"--query", "--out", "q.npy"});
  const Finished finished =
      run(call + "--out o.npy --lse /dev/null --grad-out g.npy --grad-query gq.npy");
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_EQ(cli::read_npy(path("o.npy")).shape(), inputs.query.shape());
  EXPECT_EQ(cli::read_npy(path("gq.npy")).shape(), inputs.query.shape());
}

TEST_F(Cli, WindowDrawsTheDefinition) {
  const Finished finished = run("window '1d 10 kernel_size 3 stride 2'");
  ASSERT_EQ(finished.code, 0) << finished.err;
  const AxisRule axis = {10, 10, 3, 2, 1, 1, false, false};
  size_t num_rows = 0;
  for (int64_t query = 0; query < 10; ++query) {
    std::string drawn(10, '.');
    const std::vector<int64_t> keys = visible_keys(axis, query);
    for (int64_t key : keys) drawn[static_cast<size_t>(key)] = '#';
    const std::string range = std::to_string(keys.front()) + ".." + std::to_string(keys.back());
    const size_t at = finished.out.find(drawn);
    ASSERT_NE(at, std::string::npos) << finished.out;
    num_rows += finished.out.find(" " + std::to_string(query) + " ") != std::string::npos &&
                finished.out.find(range) != std::string::npos;
  }
  EXPECT_EQ(num_rows, 10u) << finished.out;
  const Finished picture = run("window '1d 10 kernel_size 3 stride 2' --svg w.svg");
  EXPECT_EQ(picture.code, 0) << picture.err;
  EXPECT_EQ(text_of("w.svg").rfind("<svg", 0), 0u) << text_of("w.svg").substr(0, 80);
}

TEST_F(Cli, CheckCountsItsCases) {
  const Finished one = run("check --problem '2d 9x8 kernel_size 3 heads 2 head_dim 12'");
  EXPECT_EQ(one.code, 0) << one.out << one.err;
  EXPECT_NE(one.out.find("cases 1, failures 0"), std::string::npos) << one.out;
  const Finished many = run("check --cases 40 --seed 9 --backend cpu");
  EXPECT_EQ(many.code, 0) << many.out << many.err;
  EXPECT_NE(many.out.find("cases 40, failures 0"), std::string::npos) << many.out;
}

TEST_F(Cli, KernelsAreListedBuiltAndCleared) {
  const auto kernels = [&](const std::string& arguments) {
    const Finished finished = run("kernels " + arguments + " --json");
    EXPECT_EQ(finished.code, 0) << finished.err;
    return nlohmann::json::parse(finished.out, nullptr, /*allow_exceptions=*/false);
  };
  ASSERT_EQ(setenv("VECINA_CACHE_DIR", path("cache").c_str(), 1), 0);
  EXPECT_EQ(kernels("list")["kernels"].size(), 0u);
  const std::string build = "build --capability 90 1d 9 kernel_size 3 heads 2 head_dim 4";
  const Finished first = run("kernels " + build);
  if (first.err.find("NVRTC was not found") != std::string::npos) {
    unsetenv("VECINA_CACHE_DIR");
    GTEST_SKIP() << first.err;
  }
  EXPECT_EQ(first.code, 0) << first.err;
  const nlohmann::json built = kernels(build)[0]["kernels"];
  ASSERT_FALSE(built.empty());
  for (const nlohmann::json& kernel : built) {
    EXPECT_TRUE(kernel["was_on_disk"]) << kernel;
    EXPECT_EQ(kernel["architecture"].get<std::string>().rfind("sm_90", 0), 0u) << kernel;
    EXPECT_EQ(kernel["spill_bytes"], 0) << kernel;
  }
  EXPECT_EQ(kernels("list")["kernels"].size(), built.size());
  // "kernels build CAPABILITY LINE" of vecina_info; a line may begin with a word.
  const std::string attention = "attention 8x9 heads 2 head_dim 4";
  EXPECT_FALSE(kernels("build --capability 90 --parts '' " + attention)[0]["kernels"].empty());
  EXPECT_GT(kernels("clear")["removed"], built.size());
  EXPECT_EQ(kernels("list")["kernels"].size(), 0u);
  unsetenv("VECINA_CACHE_DIR");
}

TEST_F(Cli, TuneSaysWhereThereIsNothingToMeasure) {
  // Too small for the kernels that have a choice, with a GPU and without.
  for (const char* lengths : {"", " lengths packed:3", " lengths padded"}) {
    expect_usage_error(std::string("tune 1d 9 kernel_size 3 head_dim 4") + lengths,
                       {"nothing to tune: cpu: its plans follow rules", "cuda: "});
  }
  EXPECT_NE(run("tune --help").out.find("padded or packed"), std::string::npos);
}

TEST_F(Cli, TunedIsCleared) {
  ASSERT_EQ(setenv("VECINA_CACHE_DIR", path("cache").c_str(), 1), 0);
  std::filesystem::create_directory(path("cache"));
  std::ofstream(path("cache/0123.tuned")) << "{}";
  std::ofstream(path("cache/0123.kernel")) << "{}";
  const Finished cleared = run("tune --clear");
  EXPECT_EQ(cleared.code, 0) << cleared.err;
  EXPECT_EQ(cleared.out, "removed 1 from " + path("cache") + "\n");
  EXPECT_FALSE(std::filesystem::exists(path("cache/0123.tuned")));
  EXPECT_TRUE(std::filesystem::exists(path("cache/0123.kernel")));
  const Finished again = run("tune --clear --json");
  EXPECT_EQ(nlohmann::json::parse(again.out).at("removed"), 0);
  unsetenv("VECINA_CACHE_DIR");
}

TEST_F(Cli, InfoAndPlanAreJson) {
  const Finished info = run("info --json");
  ASSERT_EQ(info.code, 0) << info.err;
  EXPECT_EQ(nlohmann::json::parse(info.out).at("version"), "0.1.0");
  const Finished plan = run("plan '2d 9x8 kernel_size 3 heads 2 head_dim 12' --json");
  ASSERT_EQ(plan.code, 0) << plan.err;
  EXPECT_EQ(nlohmann::json::parse(plan.out).at("backend"), "cpu");
  EXPECT_EQ(run("info").code, 0);
  EXPECT_EQ(run("plan '2d 9x8 kernel_size 3 heads 2 head_dim 12'").code, 0);
}

TEST(Plan, SaysHowFarThePredictionWasOff) {
  auto plan = nlohmann::ordered_json::parse(R"({"details": {"kernels": [{"predicted_ms": 1.5}]}})");
  cli::add_prediction_error(2.0, &plan);
  EXPECT_DOUBLE_EQ(plan.at("prediction_error").get<double>(), -0.25);
  plan["details"]["kernels"][0]["launches"] = 3;
  cli::add_prediction_error(2.0, &plan);
  EXPECT_DOUBLE_EQ(plan.at("prediction_error").get<double>(), 1.25);
  plan = nlohmann::ordered_json::parse(R"({"details": {"predicted_ms": 3.0}})");
  cli::add_prediction_error(2.0, &plan);
  EXPECT_DOUBLE_EQ(plan.at("prediction_error").get<double>(), 0.5);
}

TEST(Plan, HasNoPredictionErrorWithoutAPredictionOfTheWhole) {
  for (const char* text : {
           R"({"details": {}})",
           R"({"details": {"predicted_ms": 0}})",  // nothing to do
           R"({"details": {"kernels": [{}]}})",
           R"({"details": {"kernels": [{"predicted_ms": 1.5}, {"predicted_ms": 1.5}]}})",
       }) {
    auto plan = nlohmann::ordered_json::parse(text);
    cli::add_prediction_error(2.0, &plan);
    EXPECT_FALSE(plan.contains("prediction_error")) << text;
  }
}

}  // namespace
}  // namespace vecina::tests
