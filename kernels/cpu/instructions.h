// Which instruction set's ops are run.
#pragma once
#include "lane.h"

const Instructions* chosen_instructions();
