# SPDX-License-Identifier: MIT
# What `cmake --install` puts where, and how other projects find it:
#
#   find_package(vecina)                     vecina::vecina (shared)
#   find_package(vecina COMPONENTS static)   also vecina::vecina_static
#   pkg-config vecina                        with --static for the static library
#
# The two libraries are exported apart: only users of the static one need fmt and Highway.
include(CMakePackageConfigHelpers)

# Only vecina_* leaves the shared library: hidden visibility does not cover what the compiler
# instantiates from the standard library and fmt.
if(UNIX AND NOT APPLE)
  target_link_options(vecina PRIVATE
    "LINKER:--version-script=${CMAKE_CURRENT_LIST_DIR}/vecina.map" "LINKER:-Bsymbolic-functions")
  set_property(TARGET vecina APPEND PROPERTY LINK_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/vecina.map)
endif()

option(VECINA_INSTALL "Install the library" ${PROJECT_IS_TOP_LEVEL})
if(NOT VECINA_INSTALL)
  return()
endif()

set(VECINA_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/vecina)
install(FILES include/vecina/vecina.h include/vecina/vecina.hpp
  include/vecina/problem.hpp include/vecina/tensor.hpp
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/vecina)
foreach(target vecina vecina_static)
  install(TARGETS ${target} EXPORT ${target}_targets
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(EXPORT ${target}_targets NAMESPACE vecina:: DESTINATION ${VECINA_CMAKE_DIR})
endforeach()

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/vecinaConfig.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/vecinaConfig.cmake INSTALL_DESTINATION ${VECINA_CMAKE_DIR}
  NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may break users.
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/vecinaConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/vecinaConfig.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/vecinaConfigVersion.cmake DESTINATION ${VECINA_CMAKE_DIR})

# pkg-config: the prefix is told relative to the file, so an installed tree can be moved.
file(RELATIVE_PATH VECINA_PC_PREFIX ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" VECINA_PC_PREFIX ${VECINA_PC_PREFIX})
configure_file(${CMAKE_CURRENT_LIST_DIR}/vecina.pc.in ${CMAKE_CURRENT_BINARY_DIR}/vecina.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/vecina.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES LICENSE README.md CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
