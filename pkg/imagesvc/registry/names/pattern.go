package names

import (
	"path"
	"strings"
)

// CheckPattern tells what is wrong with a pattern for Match. ErrInvalid.
func CheckPattern(pattern string) error {
	if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
		return ErrInvalid
	}
	return nil
}

// Match tells whether a full name, with its tag or digest, fits a pattern. Wildcards are those of path.Match, but * at the pattern's end
// or, in a pattern with no other wildcards, at both its ends stands for anything, / too: so does CRI-O's pinned_images.
func Match(pattern, name string) bool {
	if ok, err := path.Match(pattern, name); ok || err != nil {
		return ok
	}
	begin, open := strings.CutSuffix(pattern, "*")
	if word, both := strings.CutPrefix(begin, "*"); open && both && !strings.ContainsAny(word, `*?[\`) {
		return strings.Contains(name, word)
	}
	// What is before the end is as long as some beginning of the name that it fits.
	for i := 0; open && i <= len(name); i++ {
		if ok, _ := path.Match(begin, name[:i]); ok {
			return true
		}
	}
	return false
}
