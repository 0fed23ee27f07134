// SPDX-License-Identifier: MIT
#include "cuda/tuned_cuts.h"

#include <nlohmann/json.hpp>

#include "cuda/digest.h"

namespace vecina::internal::cuda {
namespace {

using nlohmann::ordered_json;
using vecina::cuda::HopperConfig;

constexpr int kFormat = 1;  // of the files; another one's are not read

// What a file must be of: the measured time depends on it.
ordered_json key_of(const Problem& problem, const std::string& device) {
  return {{"format", kFormat},
          {"problem", problem.line()},
          {"device", device},
          {"library", VECINA_VERSION},
          {"kernels", kernels_fingerprint()}};
}

ordered_json write_cut(const HopperConfig& cut) {
  return {{"warpgroups", cut.warpgroups},     {"pair_axis", cut.pair_axis},
          {"query_box", cut.query_box},       {"packed_heads", cut.packed_heads},
          {"key_box", cut.key_box},           {"stages", cut.stages},
          {"is_ping_pong", cut.is_ping_pong}, {"has_output_buffer", cut.has_output_buffer},
          {"is_chained", cut.is_chained}};
}

// Throws ordered_json::exception where a member is missing or of another type.
HopperConfig read_cut(const ordered_json& json) {
  HopperConfig cut = {};
  json.at("warpgroups").get_to(cut.warpgroups);
  json.at("pair_axis").get_to(cut.pair_axis);
  json.at("query_box").get_to(cut.query_box);
  json.at("packed_heads").get_to(cut.packed_heads);
  json.at("key_box").get_to(cut.key_box);
  json.at("stages").get_to(cut.stages);
  json.at("is_ping_pong").get_to(cut.is_ping_pong);
  json.at("has_output_buffer").get_to(cut.has_output_buffer);
  json.at("is_chained").get_to(cut.is_chained);
  return cut;
}

std::string checksum_of(const std::string& line) { return Digest().add(line).hex(); }

}  // namespace

std::string TunedCuts::file_name(const Problem& problem) const {
  return Digest().add(key_of(problem, device_).dump()).hex() + kTunedExtension;
}

std::optional<TunedCut> TunedCuts::read(const Problem& problem) const {
  const std::string bytes = cache_.read_file(file_name(problem));
  const size_t end = bytes.find('\n');
  if (end == std::string::npos || bytes.substr(end + 1) != checksum_of(bytes.substr(0, end))) {
    return std::nullopt;
  }
  try {
    const ordered_json json =
        ordered_json::parse(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(end));
    if (json.at("key") != key_of(problem, device_)) return std::nullopt;
    return TunedCut{read_cut(json.at("cut")), json.at("measured_ms")};
  } catch (const ordered_json::exception&) {
    return std::nullopt;
  }
}

void TunedCuts::write(const Problem& problem, const TunedCut& tuned) const {
  const std::string line = ordered_json{
      {"key", key_of(problem, device_)},
      {"cut", write_cut(tuned.cut)},
      {"measured_ms",
       tuned.measured_ms}}.dump();
  cache_.write_file(file_name(problem), line + "\n" + checksum_of(line));
}

int TunedCuts::clear(const DiskCache& cache) { return cache.remove_files(kTunedExtension); }

}  // namespace vecina::internal::cuda
