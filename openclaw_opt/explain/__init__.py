"""Why a build missed a budget, and the recipe changes that would bring it back: read off its report, tried if asked."""
