// SPDX-License-Identifier: MIT
// Elements are written as they come; numbers with two decimals, text escaped.
#include "cli/svg.h"

#include <fmt/format.h>

namespace vecina::cli {
namespace {

std::string escaped(const std::string& words) {
  std::string result;
  for (const char c : words) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

// Two decimals at most, no trailing zeros.
std::string number(double value) {
  std::string text = fmt::format("{:.2f}", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

}  // namespace

Svg::Svg(double width, double height, const std::string& title)
    : content_(fmt::format(
          "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
          "height=\"{1}\" role=\"img\" font-family=\"system-ui, -apple-system, 'Segoe UI', "
          "Helvetica, Arial, sans-serif\">\n<title>{2}</title>\n",
          number(width), number(height), escaped(title))) {}

void Svg::rectangle(double x, double y, double width, double height, const std::string& fill,
                    double opacity, double radius, const std::string& tooltip) {
  content_ +=
      fmt::format(R"(<rect x="{}" y="{}" width="{}" height="{}" rx="{}" fill="{}")", number(x),
                  number(y), number(width), number(height), number(radius), fill);
  if (opacity < 1.0) content_ += fmt::format(R"( fill-opacity="{}")", number(opacity));
  content_ +=
      tooltip.empty() ? "/>\n" : fmt::format("><title>{}</title></rect>\n", escaped(tooltip));
}

void Svg::frame(double x, double y, double width, double height, const std::string& stroke,
                double thickness) {
  content_ +=
      fmt::format(R"(<rect x="{}" y="{}" width="{}" height="{}" rx="2" fill="none" stroke="{}" )"
                  "stroke-width=\"{}\"/>\n",
                  number(x), number(y), number(width), number(height), stroke, number(thickness));
}

void Svg::line(double x1, double y1, double x2, double y2, const std::string& stroke,
               double opacity) {
  content_ +=
      fmt::format(R"(<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}" stroke-opacity="{}"/>)"
                  "\n",
                  number(x1), number(y1), number(x2), number(y2), stroke, number(opacity));
}

void Svg::text(double x, double y, const std::string& words, double size, Anchor anchor,
               bool is_bold) {
  constexpr const char* kAnchors[] = {"start", "middle", "end"};
  content_ +=
      fmt::format(R"(<text x="{}" y="{}" font-size="{}" text-anchor="{}" fill="{}"{}>{}</text>)"
                  "\n",
                  number(x), number(y), number(size), kAnchors[static_cast<int>(anchor)],
                  colour::kText, is_bold ? " font-weight=\"600\"" : "", escaped(words));
}

}  // namespace vecina::cli
