// SPDX-License-Identifier: MIT
#ifndef VECINA_API_LOG_H_
#define VECINA_API_LOG_H_

#include "core/log.h"

#endif  // VECINA_API_LOG_H_
