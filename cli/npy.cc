// SPDX-License-Identifier: MIT
// The header is a Python literal, {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }; the
// parser below takes exactly that much of the language. No size is trusted before it was compared
// with the bytes that are there.
#include "cli/npy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>

#include "cli/dtypes.h"
#include "cli/errors.h"
#include "cli/text.h"
#include "vecina/vecina.hpp"

static_assert(std::endian::native == std::endian::little, ".npy files are read as little-endian.");

namespace vecina::cli {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr size_t kMaxAxes = 6;
constexpr size_t kMaxHeaderBytes = 65536;
constexpr int64_t kMaxElements = int64_t{1} << 56;

class HeaderParser {
 public:
  HeaderParser(std::string_view text, NpyArray& array) : text_(text), array_(array) {}

  void parse() {
    expect('{');
    while (!accept('}')) {
      parse_entry(read_string());
      if (!accept(',') && peek() != '}') fail("a ',' or '}' is missing");
    }
    skip_space();
    if (position_ != text_.size()) fail("something follows the dictionary");
    if (!has_descr_ || !has_order_ || !has_shape_) {
      fail("one of the keys 'descr', 'fortran_order' and 'shape' is missing");
    }
  }

 private:
  [[noreturn]] static void fail(const std::string& what) {
    throw NpyError(fmt::format("the .npy header is malformed: {}.", what));
  }

  void skip_space() {
    while (position_ < text_.size() && (text_[position_] == ' ' || text_[position_] == '\n' ||
                                        text_[position_] == '\t' || text_[position_] == '\r')) {
      ++position_;
    }
  }
  char peek() {
    skip_space();
    return position_ < text_.size() ? text_[position_] : '\0';
  }
  bool accept(char c) {
    if (peek() != c) return false;
    ++position_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail(fmt::format("'{}' is missing", c));
  }
  bool accept_word(std::string_view word) {
    skip_space();
    if (text_.substr(position_, word.size()) != word) return false;
    position_ += word.size();
    return true;
  }

  std::string_view read_string() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') fail("a quoted word is missing");
    const size_t begin = ++position_;
    const size_t end = text_.find(quote, begin);
    if (end == std::string_view::npos) fail("a quote is not closed");
    position_ = end + 1;
    return text_.substr(begin, end - begin);
  }

  void parse_entry(std::string_view key) {
    expect(':');
    if (key == "descr" && !has_descr_) {
      has_descr_ = true;
      parse_descr();
    } else if (key == "fortran_order" && !has_order_) {
      has_order_ = true;
      array_.is_fortran_order = accept_word("True");
      if (!array_.is_fortran_order && !accept_word("False")) {
        fail("fortran_order is neither True nor False");
      }
    } else if (key == "shape" && !has_shape_) {
      has_shape_ = true;
      parse_shape();
    } else {
      fail("a key is unknown or given twice");
    }
  }

  void parse_descr() {
    if (peek() == '[') {
      throw NpyError(
          "arrays with named fields are not read; save one plain array for each tensor.");
    }
    const std::string_view descr = read_string();
    constexpr std::string_view kTypes[] = {"f4", "f8", "f2", "u2", "i4", "i8"};
    const bool has_order = !descr.empty() && std::string_view("<>=|").find(descr[0]) != descr.npos;
    const std::string_view type = descr.substr(has_order ? 1 : 0);
    if (std::find(std::begin(kTypes), std::end(kTypes), type) == std::end(kTypes)) {
      throw NpyError(fmt::format(
          "element type '{}' is not read; f2, f4, f8, i4, i8 and u2 (the bits of bf16) are.",
          printable(descr)));
    }
    array_.is_big_endian = descr[0] == '>';
    array_.kind = type[0];
    array_.item_bytes = type[1] - '0';
  }

  static std::string printable(std::string_view text) {
    std::string result(text.substr(0, 40));
    for (char& c : result) {
      if (c < ' ' || c > '~') c = '?';
    }
    return result;
  }

  void parse_shape() {
    expect('(');
    while (!accept(')')) {
      skip_space();
      int64_t size = 0;
      const char* begin = text_.data() + position_;
      const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), size);
      if (error == std::errc::result_out_of_range) fail("a size exceeds 64 bits");
      if (error != std::errc() || size < 0) fail("the shape holds something that is not a size");
      position_ += static_cast<size_t>(end - begin);
      accept('L');  // Python 2 wrote 7L
      array_.shape.push_back(size);
      if (array_.shape.size() > kMaxAxes) {
        throw NpyError(fmt::format("the array has more than {} axes.", kMaxAxes));
      }
      if (!accept(',') && peek() != ')') fail("a ',' or ')' is missing in the shape");
    }
    if (array_.shape.empty()) {
      throw NpyError("the array has no axes (it is a single number); a tensor has 1 to 6.");
    }
  }

  const std::string_view text_;
  NpyArray& array_;
  size_t position_ = 0;
  bool has_descr_ = false, has_order_ = false, has_shape_ = false;
};

// Product of the sizes (0 counted as 1 for the limit, so that no later product overflows either).
int64_t count_elements(const std::vector<int64_t>& shape) {
  int64_t count = 1, bound = 1;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(bound, std::max<int64_t>(size, 1), &bound) || bound > kMaxElements) {
      throw NpyError(
          fmt::format("the shape ({}) has more elements than can be.", fmt::join(shape, ", ")));
    }
    count *= size;
  }
  return count;
}

size_t read_little_endian(std::span<const std::byte> bytes) {
  size_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | std::to_integer<size_t>(bytes[i]);
  return value;
}

template <typename T>
double number(const std::array<std::byte, 8>& bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(value));
  if constexpr (std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>) {
    return static_cast<double>(static_cast<float>(value));
  } else {
    return static_cast<double>(value);
  }
}

// Element at `position` of the file's own order.
double element(const NpyArray& array, int64_t position) {
  std::array<std::byte, 8> bytes = {};
  const size_t size = static_cast<size_t>(array.item_bytes);
  std::memcpy(bytes.data(), array.data.data() + static_cast<size_t>(position) * size, size);
  if (array.is_big_endian) std::reverse(bytes.begin(), bytes.begin() + array.item_bytes);
  if (array.kind == 'u') return number<bfloat16>(bytes);
  if (array.kind == 'i') return size == 4 ? number<int32_t>(bytes) : number<int64_t>(bytes);
  return size == 2   ? number<float16>(bytes)
         : size == 4 ? number<float>(bytes)
                     : number<double>(bytes);
}

// From a row-major index to the position in Fortran order, where the first axis is the fastest.
int64_t fortran_position(const std::vector<int64_t>& shape, int64_t index) {
  int64_t position = 0, stride = 1;
  for (const int64_t size : shape) stride *= size;
  for (size_t d = shape.size(); d-- > 0;) {
    stride /= shape[d];
    position += index % shape[d] * stride;
    index /= shape[d];
  }
  return position;
}

int32_t own_dtype(const NpyArray& array) {
  if (array.kind == 'i') return array.item_bytes == 4 ? VECINA_I32 : VECINA_I64;
  return array.item_bytes == 2 ? VECINA_F16 : array.item_bytes == 4 ? VECINA_F32 : VECINA_F64;
}

const char* descr_of(int32_t dtype) {
  switch (dtype) {
    case VECINA_F32:
      return "<f4";
    case VECINA_F64:
      return "<f8";
    case VECINA_F16:
      return "<f2";
    case VECINA_BF16:
      return "<u2";
    case VECINA_I32:
      return "<i4";
    default:
      return "<i8";
  }
}

}  // namespace

NpyArray parse_npy(std::span<const std::byte> bytes) {
  constexpr size_t kVersionAt = kMagic.size(), kLengthAt = kVersionAt + 2;
  if (bytes.size() < kLengthAt || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    throw NpyError("this is not a .npy file (it does not begin with \\x93NUMPY).");
  }
  const int version = std::to_integer<int>(bytes[kVersionAt]);
  if (version < 1 || version > 3) {
    throw NpyError(fmt::format(".npy version {} is not read; 1, 2 and 3 are.", version));
  }
  const size_t header_at = kLengthAt + (version == 1 ? 2 : 4);
  if (bytes.size() < header_at) throw NpyError("the .npy file ends within its header.");
  const size_t header_bytes = read_little_endian(bytes.subspan(kLengthAt, header_at - kLengthAt));
  if (header_bytes > kMaxHeaderBytes) {
    throw NpyError(fmt::format("the .npy header claims {} bytes; at most {} are read.",
                               header_bytes, kMaxHeaderBytes));
  }
  if (header_bytes > bytes.size() - header_at) {
    throw NpyError("the .npy file ends within its header.");
  }
  NpyArray array;
  const auto* header = reinterpret_cast<const char*>(bytes.data() + header_at);
  HeaderParser(std::string_view(header, header_bytes), array).parse();

  const std::span<const std::byte> rest = bytes.subspan(header_at + header_bytes);
  const size_t needed =
      static_cast<size_t>(count_elements(array.shape)) * static_cast<size_t>(array.item_bytes);
  if (needed > rest.size()) {
    throw NpyError(fmt::format(
        "the .npy file is cut off: its shape ({}) needs {} bytes of elements, {} are there.",
        fmt::join(array.shape, ", "), needed, rest.size()));
  }
  array.data = rest.first(needed);
  return array;
}

HostTensor to_tensor(const NpyArray& array, int32_t dtype) {
  if (array.kind == 'u' && dtype != VECINA_BF16) {
    throw NpyError(
        "the array holds 2-byte unsigned integers; they are taken as the bits of bf16 only with "
        "--dtype bf16.");
  }
  HostTensor tensor(array.shape, dtype == -1 ? own_dtype(array) : dtype);
  for (int64_t i = 0; i < tensor.size(); ++i) {
    const int64_t position = array.is_fortran_order ? fortran_position(array.shape, i) : i;
    tensor.set(i, element(array, position));
  }
  return tensor;
}

std::vector<std::byte> format_npy(const HostTensor& tensor) {
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({},), }}",
                                   descr_of(tensor.dtype()), fmt::join(tensor.shape(), ", "));
  // The elements begin at a multiple of 64; the header ends in a newline.
  const size_t before = kMagic.size() + 4;
  header.resize((before + header.size() + 1 + 63) / 64 * 64 - before - 1, ' ');
  header += '\n';

  std::string file(kMagic);
  file +=
      {'\1', '\0', static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  file += header;
  const size_t item_bytes = static_cast<size_t>(dtype_bytes(tensor.dtype()));
  const size_t row = static_cast<size_t>(tensor.shape().back());
  const vecina_tensor view = tensor.view();
  const auto* data = static_cast<const char*>(view.data);
  const size_t pitch = view.ndim > 1 ? static_cast<size_t>(view.strides[view.ndim - 2]) : row;
  for (size_t first = 0; first < static_cast<size_t>(tensor.size()); first += row) {
    file.append(data + first / row * pitch * item_bytes, row * item_bytes);
  }
  const auto* bytes = reinterpret_cast<const std::byte*>(file.data());
  return {bytes, bytes + file.size()};
}

HostTensor read_npy(const std::string& path, int32_t dtype) {
  const std::string content = read_file(path);
  try {
    return to_tensor(parse_npy(std::as_bytes(std::span(content))), dtype);
  } catch (const NpyError& error) {
    throw UsageError(fmt::format("{}: {}", path, error.what()));
  }
}

void write_npy(const std::string& path, const HostTensor& tensor) {
  const std::vector<std::byte> bytes = format_npy(tensor);
  write_file(path, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

}  // namespace vecina::cli
