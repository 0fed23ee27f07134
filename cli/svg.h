// SPDX-License-Identifier: MIT
// A small SVG writer. The colours are read on white and on dark pages alike; the background stays
// transparent.
#ifndef VECINA_CLI_SVG_H_
#define VECINA_CLI_SVG_H_

#include <string>

namespace vecina::cli {

namespace colour {
inline constexpr const char* kText = "#737b85";
inline constexpr const char* kGrid = "#8b949e";
inline constexpr const char* kBlue = "#3f8fd2";
inline constexpr const char* kOrange = "#e8853b";
inline constexpr const char* kGreen = "#4ca773";
inline constexpr const char* kViolet = "#9a78d0";
}  // namespace colour

enum class Anchor { start, middle, end };

class Svg {
 public:
  Svg(double width, double height, const std::string& title);

  // A rounded rectangle; `tooltip` is shown when the mouse rests on it.
  void rectangle(double x, double y, double width, double height, const std::string& fill,
                 double opacity = 1.0, double radius = 2.0, const std::string& tooltip = {});
  void frame(double x, double y, double width, double height, const std::string& stroke,
             double thickness);
  void line(double x1, double y1, double x2, double y2, const std::string& stroke, double opacity);
  void text(double x, double y, const std::string& words, double size = 12.0,
            Anchor anchor = Anchor::start, bool is_bold = false);

  std::string finish() const { return content_ + "</svg>\n"; }

 private:
  std::string content_;
};

}  // namespace vecina::cli
#endif  // VECINA_CLI_SVG_H_
