package credential

import (
	"path"
	"slices"
	"strings"
)

// dockerHub is the name of Docker's registry in the names of images; its API and docker's files have others.
const dockerHub = "docker.io"

// canonicalHost gives a registry one name.
func canonicalHost(host string) string {
	host = strings.ToLower(host)
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return dockerHub
	}
	return host
}

// nameAt is the image's name as it would be with a host as its registry: what patterns are compared with. The credential
// of a registry is not found for its mirror by this, but that of the mirror.
func nameAt(image, host string) string {
	_, repository, _ := strings.Cut(image, "/")
	return canonicalHost(host) + "/" + repository
}

// canonicalKey is the pattern of a key in a docker file, which may be a URL of an old API: "https://index.docker.io/v1/".
func canonicalKey(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, rest, ok := strings.Cut(key, "/")
	if ok {
		rest = "/" + rest
		for _, api := range []string{"/v1/", "/v2/"} {
			if strings.HasPrefix(rest, api) {
				rest = rest[len(api)-1:]
			}
		}
		if rest == "/v1" || rest == "/v2" || rest == "/" {
			rest = ""
		}
	}
	return canonicalHost(host) + rest
}

// matches compares as the kubelet does (its documentation, "Configuration of image matching"): equally many parts of the
// host, each of which matches with * and ?, the same port, and a path that begins with the pattern's.
func matches(pattern, image string) bool {
	host, prefix := splitPath(pattern)
	imageHost, imagePath := splitPath(image)
	host, imageHost = strings.ToLower(host), strings.ToLower(imageHost)
	if !strings.HasPrefix(imagePath, prefix) {
		return false
	}
	if host == imageHost {
		return true
	}
	name, port := splitPort(host)
	imageName, imagePort := splitPort(imageHost)
	parts, imageParts := strings.Split(name, "."), strings.Split(imageName, ".")
	if port != imagePort || len(parts) != len(imageParts) {
		return false
	}
	for i := range parts {
		if ok, err := path.Match(parts[i], imageParts[i]); !ok || err != nil {
			return false
		}
	}
	return true
}

func splitPath(name string) (host, rest string) {
	if i := strings.IndexByte(name, '/'); i >= 0 {
		return name[:i], name[i:]
	}
	return name, ""
}

func splitPort(host string) (name, port string) {
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		return host[:i], host[i+1:]
	}
	return host, ""
}

// matching are the keys that match an image, in the kubelet's order: longer ones before what they begin with, names before
// patterns.
func matching[V any](all map[string]V, image string) []string {
	var keys []string
	for key := range all {
		if matches(canonicalKey(key), image) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		if c := strings.Compare(canonicalKey(b), canonicalKey(a)); c != 0 {
			return c
		}
		return strings.Compare(b, a)
	})
	return keys
}
