package archive

import (
	"slices"

	"github.com/containerd/platforms"
)

// ForThisMachine leaves out the images of other platforms: some archives list all platforms of an image side by side. It leaves
// all if there is none for this machine.
func ForThisMachine(images []Image) []Image {
	matcher := platforms.Default()
	mine := func(img Image) bool { return img.Root.Platform == nil || matcher.Match(*img.Root.Platform) }
	if !slices.ContainsFunc(images, mine) {
		return images
	}
	return slices.DeleteFunc(images, func(img Image) bool { return !mine(img) })
}
