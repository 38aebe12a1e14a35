/* version.h - of the program, told by --version and written into reports. */
#ifndef HOST_VERSION_H
#define HOST_VERSION_H
#define STAGEDIFF_VERSION "0.1.0"
#endif
