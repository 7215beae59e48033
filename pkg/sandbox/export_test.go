package sandbox

import "criserver/pkg/snapshot"

var usageNone = snapshot.Usage{}
